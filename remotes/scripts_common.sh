# shellcheck shell=bash
# Functions that drivers and add-ons written in bash source: onesdm's own implementation of the library that
# OpenNebula documents under this name. Needs bash 4.4. "Exits" means the script that sourced this.

export LANG=C LC_ALL=C
export PATH=/bin:/sbin:/usr/bin:$PATH

# Commands, each to be overridden by a variable of the environment. Several of these are lists of words.
: "${AWK:=awk}" "${CEPH:=ceph}" "${CP:=cp}" "${CUT:=cut}" "${DATE:=date}" "${DD:=dd}" "${DF:=df}" "${DU:=du}"
: "${GREP:=grep}" "${ISCSIADM:=iscsiadm}" "${LN:=ln}" "${LVCHANGE:=lvchange}" "${LVCREATE:=lvcreate}"
: "${LVEXTEND:=lvextend}" "${LVREMOVE:=lvremove}" "${LVS:=lvs}" "${LVSCAN:=lvscan}" "${MD5SUM:=md5sum}"
: "${MKFS:=mkfs}" "${MKSWAP:=mkswap}" "${QEMU_IMG:=qemu-img}" "${RADOS:=rados}" "${RBD:=rbd}"
: "${READLINK:=readlink}" "${RM:=rm}" "${SED:=sed -r}" "${SSH:=ssh}" "${SUDO:=sudo -n}" "${SYNC:=sync}"
: "${SSH_FWD:=ssh -o ForwardAgent=yes -o ControlMaster=no -o ControlPath=none}" "${TAR:=tar}"
: "${TGTADM:=tgtadm}" "${TGTADMIN:=tgt-admin}" "${TGTSETUPLUN:=tgt-setup-lun-one}" "${TR:=tr}"
: "${VGDISPLAY:=vgdisplay}" "${VMKFSTOOLS:=vmkfstools}" "${WGET:=wget}"

# The only command that sudoers allow on fstab; it reads its script from stdin.
# shellcheck disable=SC2034 # for scripts that source this
SUDO_SED_FSTAB='flock -w 5 /etc/fstab sudo sed -i -f /proc/self/fd/0 /etc/fstab'

SCRIPT_NAME=${0##*/}
ONE_LOCAL_VAR=${ONE_LOCATION:+$ONE_LOCATION/var}
ONE_LOCAL_VAR=${ONE_LOCAL_VAR:-/var/lib/one}
DS_DIR=${DS_DIR:-$ONE_LOCAL_VAR/datastores}
# Where this file lies: the top of the remotes tree.
_ONESDM_REMOTES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

# ---------------------------------------------------------------- our own

# onesdm ARGS..: the program, from the self-contained installation, the tree, or the usual places.
_onesdm() {
    local program
    for program in ${ONE_LOCATION:+"$ONE_LOCATION/bin/onesdm"} "$_ONESDM_REMOTES/onesdm" \
        "$(type -P onesdm)" /usr/bin/onesdm; do
        if [[ -x $program && ! -d $program ]]; then
            "$program" "$@"
            return
        fi
    done
    error_message "onesdm is not installed: it is not in PATH nor in $_ONESDM_REMOTES"
    return 127
}

# _onesdm_xpath XPATH..: fills XPATH_ELEMENTS with what xpath.rb finds in the document on stdin. Not as an
# argument: others could read it, and large ones do not fit.
_onesdm_xpath() {
    local program
    program=$(dirname -- "$0")/../../datastore/xpath.rb
    [[ -e $program ]] || program=$_ONESDM_REMOTES/datastore/xpath.rb
    [[ -e $program ]] || program=$ONE_LOCAL_VAR/remotes/datastore/xpath.rb
    mapfile -d '' XPATH_ELEMENTS < <("$program" --stdin "$@")
}

# _onesdm_capture CMD..: runs it here and keeps stdout, stderr and status in _OUT, _ERR and _RC.
# shellcheck disable=SC2030,SC2031 # they come back by declare
_onesdm_capture() {
    local out='' err='' rc=0
    eval "$(
        exec 3>&1
        err=$(
            { out=$("$@" 3>&-); } 2>&1
            rc=$?
            declare -p out rc >&3
        )
        declare -p err
    )"
    _OUT=$out _ERR=$err _RC=$rc
}

# _onesdm_script SCRIPT SHELL..: feeds the script to a shell; the status is the shell's.
_onesdm_script() {
    local script=$1
    shift
    printf '%s\n' 'export LANG=C' 'export LC_ALL=C' "$script" | "$@"
}

# _onesdm_failed CMD ERR MSG: how a failed command is reported. The quotes around it are CMD's.
_onesdm_failed() {
    log_error "Command \"$1\" failed: $2"
    error_message "$3"
}

# ---------------------------------------------------------------- paths and lists

fix_dir_slashes() {
    local path=$1
    while [[ $path == *//* ]]; do
        path=${path//\/\//\/}
    done
    path=${path%/}
    printf '%s\n' "${path:-/}"
}

# contains LIST ELEMENT SEPARATOR
contains() {
    local rest=$1$3 item
    [[ $2 && $3 ]] || return 1
    while [[ $rest ]]; do
        item=${rest%%"$3"*}
        rest=${rest#*"$3"}
        # Blanks around an element of "ext4, xfs" are not part of it.
        item=${item#"${item%%[![:space:]]*}"}
        item=${item%"${item##*[![:space:]]}"}
        [[ $item == "$2" ]] && return 0
    done
    return 1
}

# The ampersand first: it is in what the others become.
xml_esc() {
    local text=$1 amp='&'
    text=${text//"$amp"/"${amp}amp;"}
    text=${text//"'"/"${amp}apos;"}
    text=${text//'"'/"${amp}quot;"}
    text=${text//'<'/"${amp}lt;"}
    text=${text//'>'/"${amp}gt;"}
    printf '%s\n' "$text"
}

# ---------------------------------------------------------------- messages

log_date() {
    date '+%a %b %d %H:%M:%S %Y'
}

# log_function SEVERITY MESSAGE
log_function() {
    printf '%s: %s: %s\n' "$1" "$SCRIPT_NAME" "$2" >&2
}

log() {
    log_function INFO "$1"
}

log_info() {
    log_function INFO "$1"
}

log_error() {
    log_function ERROR "$1"
}

log_debug() {
    log_function DEBUG "$1"
}

# What the user gets to see: all of stderr that is no log line.
error_message() {
    printf '%s\n' "$1" >&2
}

# ---------------------------------------------------------------- running commands

# exclusive NAME TIMEOUT CMD ARGS..: runs it in this shell under a lock of this machine.
exclusive() {
    local file=${ONE_LOCK_DIR:-/var/lock/one}/$1 timeout=$2 fd rc=0
    shift 2
    if ! (umask 0027 && : >>"$file") 2>/dev/null; then
        log_error "Could not open lock $file"
        exit 254
    fi
    exec {fd}>>"$file"
    if ! flock -w "$timeout" "$fd"; then
        log_error "Could not acquire lock $file within $timeout s"
        exit 254
    fi
    "$@" || rc=$?
    # Not by closing alone: what the command left running in the background has the file open, too.
    flock -u "$fd"
    exec {fd}>&-
    return "$rc"
}

# retry_if MATCH TRIES SLEEP CMD ARGS..: again while it fails and says MATCH on stderr; exits.
retry_if() {
    retry_if_no_error "$@"
    exit
}

# The same, but returns.
retry_if_no_error() {
    local match=$1 tries=$2 pause=$3 _OUT='' _ERR='' _RC=0
    shift 3
    while ((tries-- > 0)); do
        _onesdm_capture "$@"
        if ((_RC == 0 || tries == 0)) || ! $GREP -q -e "$match" <<<"$_ERR"; then
            break
        fi
        sleep "$pause"
    done
    [[ -z $_ERR ]] || printf '%s\n' "$_ERR" >&2
    [[ -z $_OUT ]] || printf '%s\n' "$_OUT"
    return "$_RC"
}

# exec_and_log "CMD" ["MSG"]: words and patterns of CMD are expanded, nothing else; exits when it fails.
exec_and_log() {
    local err rc=0
    # shellcheck disable=SC2086 # CMD is a list of words
    err=$($1 2>&1 >/dev/null) || rc=$?
    ((rc == 0)) && return
    _onesdm_failed "$1" "$err" "${2:-Error executing \"$1\": $err}"
    exit "$rc"
}

multiline_exec_and_log() {
    local err rc=0
    err=$(_onesdm_script "$1" bash -s 2>&1 >/dev/null) || rc=$?
    ((rc == 0)) && return
    _onesdm_failed "$1" "$err" "${2:-Error executing \"$1\": $err}"
    exit "$rc"
}

# exec_and_set_error "CMD" ["MSG"]: never exits; ERROR is empty when it succeeded.
exec_and_set_error() {
    local err rc=0
    err=$(bash -c "$1" 2>&1 >/dev/null) || rc=$?
    _onesdm_set_error "$rc" "$1" "$err" "$2"
}

multiline_exec_and_set_error() {
    local err rc=0
    err=$(_onesdm_script "$1" bash -s 2>&1 >/dev/null) || rc=$?
    _onesdm_set_error "$rc" "$1" "$err" "$2"
}

_onesdm_set_error() {
    export ERROR=
    (($1 == 0)) && return
    log_error "Command \"$2\" failed: $3"
    ERROR=${4:-Error executing $2: $3}
}

# monitor_and_log "SCRIPT" ["NAME"]: prints what it prints; exits when it fails.
monitor_and_log() {
    _onesdm_monitor "$1" "${2:-$1}" bash -s
}

_onesdm_monitor() {
    local script=$1 name=$2 out rc=0
    shift 2
    out=$(_onesdm_script "$script" "$@" 2>/dev/null) || rc=$?
    if ((rc != 0)); then
        log_error "Command \"$name\" failed: $out"
        exit "$rc"
    fi
    printf '%s\n' "$out"
}

# timeout_exec_and_log SECONDS "CMD": exits with 143 when time runs out.
timeout_exec_and_log() {
    local seconds=$1 cmd=$2 pid timer rc=0
    (exec_and_log "$cmd") &
    pid=$!
    # A read that nothing answers, because a `sleep` would outlive the shell that started it.
    (
        read -rt "$seconds" <> <(:)
        trap '' TERM
        _onesdm_kill_tree "$pid"
        exit 0
    ) >/dev/null 2>&1 &
    timer=$!
    wait "$pid" 2>/dev/null || rc=$?
    kill "$timer" 2>/dev/null
    # It ends well only when it was not stopped while it waited.
    if wait "$timer" 2>/dev/null && ((rc != 0)); then
        _onesdm_failed "$cmd" "killed after $seconds s" "Timeout executing $cmd"
        exit 143
    fi
    ((rc == 0)) || exit "$rc"
}

# Held still first, so that it neither starts another child nor says that one failed.
_onesdm_kill_tree() {
    local child children
    kill -STOP "$1" || return
    read -ra children < <(cat "/proc/$1/task"/*/children | tr '\n' ' ')
    for child in "${children[@]}"; do
        _onesdm_kill_tree "$child"
    done
    kill "$1"
    kill -CONT "$1"
} 2>/dev/null

# retry N FUNC: until it succeeds, at most N times, a second apart.
retry() {
    local left=$1
    while :; do
        # shellcheck disable=SC2086 # FUNC may be a list of words
        $2 >/dev/null && return 0
        ((--left > 0)) || return 1
        sleep 1
    done
}

# force_shutdown DEPLOY_ID CMD: after a command that may have failed.
force_shutdown() {
    local rc=$?
    ((rc == 0)) && return
    if [[ ${FORCE_DESTROY:-} != yes ]]; then
        error_message "Timed out shutting down $1"
        exit 255
    fi
    log_error "Timeout shutting down $1. Destroying it"
    # shellcheck disable=SC2086 # CMD is a list of words
    $2 >/dev/null
    sleep 2
}

# mkfs_command DST FORMAT SIZE_MB SUPPORTED_FS FS FS_OPTS: prints the commands that make an image.
mkfs_command() {
    local dst format=raw size=${3:-0} fs=$5
    printf -v dst %q "$1"
    if [[ $fs ]]; then
        if ! contains "$4" "$fs" ,; then
            log_error "Unsupported file system type: $fs. Supported types are: $4"
            exit 255
        fi
        echo "$QEMU_IMG create -f raw $dst ${size}M"
        case $fs in
        xfs) echo "$MKFS.xfs -f ${6:+$6 }$dst" ;;
        *) echo "$MKFS -F -t $fs ${6:+$6 }$dst" ;;
        esac
        if [[ $2 == qcow2 ]]; then
            echo "$QEMU_IMG convert -f raw -O qcow2 $dst $dst.qcow2"
            echo "mv $dst.qcow2 $dst"
        fi
    else
        [[ $2 == qcow2 ]] && format=qcow2
        echo "$QEMU_IMG create -f $format $dst ${size}M"
    fi
    if [[ $2 == swap ]]; then
        echo "$MKSWAP -L swap $dst"
    fi
}

# ---------------------------------------------------------------- other hosts

# ssh_forward CMD ARGS..: with SSH as it must be to go on from there to another host.
ssh_forward() {
    local SSH=$SSH_FWD
    "$@"
}

# ssh_exec_and_log_no_error HOST "SCRIPT" ["MSG"] [OTHER_GOOD_STATUS]
ssh_exec_and_log_no_error() {
    local err rc=0
    # shellcheck disable=SC2086 # SSH is a list of words
    err=$(_onesdm_script "$2" $SSH "$1" bash -s 2>&1 >/dev/null) || rc=$?
    if ((rc != 0)) && [[ $rc != "${4:-0}" ]]; then
        _onesdm_failed "$2" "$err" "${3:-Error executing $2: $err}"
    fi
    return "$rc"
}

ssh_exec_and_log() {
    ssh_exec_and_log_no_error "$@" || exit
}

# ssh_exec_and_log_stdin HOST "SCRIPT" FILE ["MSG"]: the text of FILE goes before the script.
ssh_exec_and_log_stdin() {
    local head err rc=0
    if ! head=$(cat -- "$3"); then
        error_message "Error reading $3"
        exit 1
    fi
    # shellcheck disable=SC2086 # SSH is a list of words
    err=$(_onesdm_script "$head"$'\n'"$2" $SSH "$1" bash -s 2>&1 >/dev/null) || rc=$?
    ((rc == 0)) && return
    _onesdm_failed "$2" "$err" "${4:-Error executing $2: $err}"
    exit "$rc"
}

# ssh_monitor_and_log HOST "SCRIPT" ["NAME"]
ssh_monitor_and_log() {
    # shellcheck disable=SC2086 # SSH is a list of words
    _onesdm_monitor "$2" "${3:-$2}" $SSH "$1" bash -s
}

# _onesdm_at HOST "SCRIPT" "MSG": exits when it fails, with MSG and what was said.
_onesdm_at() {
    local err rc=0
    # shellcheck disable=SC2086 # SSH is a list of words
    err=$(_onesdm_script "$2" $SSH "$1" bash -s 2>&1 >/dev/null) || rc=$?
    ((rc == 0)) && return
    error_message "$3: $err"
    exit "$rc"
}

# ssh_make_path HOST DIR
ssh_make_path() {
    local dir
    printf -v dir %q "$2"
    _onesdm_at "$1" "mkdir -p -- $dir" "Error creating directory $2 at $1"
}

# enable_local_monitoring HOST DIR TEXT: DIR is a VM's; the marker lies in its datastore.
enable_local_monitoring() {
    local file text
    printf -v file %q "$(dirname -- "$2")/.monitor"
    printf -v text %q "$3"
    _onesdm_at "$1" "[ \"\$(cat -- $file 2>/dev/null)\" = $text ] || printf '%s\\n' $text > $file" \
        "Error creating $(dirname -- "$2")/.monitor at $1"
}

disable_local_monitoring() {
    local file
    printf -v file %q "$(dirname -- "$2")/.monitor"
    _onesdm_at "$1" "rm -f -- $file" "Error deleting $(dirname -- "$2")/.monitor at $1"
}

# ---------------------------------------------------------------- iSCSI: these print command lines

tgtadm_target_new() {
    echo "$TGTADM --lld iscsi --op new --mode target --tid $1 --targetname $2"
}

tgtadm_target_bind_all() {
    echo "$TGTADM --lld iscsi --op bind --mode target --tid $1 -I ALL"
}

tgtadm_logicalunit_new() {
    echo "$TGTADM --lld iscsi --op new --mode logicalunit --tid $1 --lun 1 --backing-store $2"
}

tgtadm_target_delete() {
    echo "$TGTADM --lld iscsi --op delete --mode target --tid $1"
}

tgtadm_get_tid_for_iqn() {
    echo "$TGTADM --lld iscsi --op show --mode target | $AWK -v iqn=$1 '\$1 == \"Target\" && \$3 == iqn { print \$2 + 0 }'"
}

tgtadm_next_tid() {
    echo "$TGTADM --lld iscsi --op show --mode target | $AWK '\$1 == \"Target\" && \$2 + 0 > last { last = \$2 + 0 } END { print last + 1 }'"
}

tgt_admin_dump_config() {
    echo "$TGTADMIN --dump | $SUDO tee $1 >/dev/null 2>&1"
}

iscsiadm_discovery() {
    echo "$ISCSIADM -m discovery -t st -p $1"
}

iscsiadm_login() {
    echo "$ISCSIADM -m node --targetname $1 -p $2 --login"
}

iscsiadm_logout() {
    echo "$ISCSIADM -m node --targetname $1 --logout"
}

# Whether a host takes part: NO_ISCSI lists those that do not.
is_iscsi() {
    ! contains "${NO_ISCSI:-}" "$1" ' '
}

is_cdrom() {
    [[ ${IMAGE_TYPE:-} == 1 ]]
}

# iqn.<date>.<domain>:<host>.<vg>.<lv>
iqn_get_lv_name() {
    echo "${1##*.}"
}

iqn_get_vg_name() {
    local rest=${1%.*}
    echo "${rest##*.}"
}

iqn_get_host() {
    local rest=${1#*:}
    rest=${rest%.*}
    echo "${rest%.*}"
}

# tgt_setup_lun_install HOST DIR: exits when the host lacks the tool; what was found is noted in DIR.
tgt_setup_lun_install() {
    local noted=$2/.tgt-setup-lun
    [[ -f $noted ]] && return
    # shellcheck disable=SC2029,SC2086 # SSH and SUDO are lists of words, meant for here
    if $SSH "$1" "$SUDO $TGTSETUPLUN" 2>&1 | grep -q 'command not found'; then
        error_message "$TGTSETUPLUN is not installed in $1."
        exit 127
    fi
    touch -- "$noted"
}

# tgt_setup_lun IQN DEV
tgt_setup_lun() {
    echo "$TGTSETUPLUN -d $2 -n $1 1>&2"
}

# ---------------------------------------------------------------- hypervisor drivers

# get_source_xml "HOST[:PORT].." [TRANSPORT]
get_source_xml() {
    local host name port out=
    for host in $1; do
        name=${host%%:*}
        port=${host#"$name"}
        port=${port#:}
        out+="<host name='$(xml_esc "$name")'"
        [[ $port ]] && out+=" port='$(xml_esc "${port%%:*}")'"
        [[ ${2:-} ]] && out+=" transport='$(xml_esc "$2")'"
        out+='/>'
    done
    printf '%s\n' "$out"
}

# _onesdm_document NAME=XPATH..: sets variables from the document on stdin.
_onesdm_document() {
    local names=("${@%%=*}") XPATH_ELEMENTS=() i
    _onesdm_xpath "${@#*=}"
    for i in "${!names[@]}"; do
        printf -v "${names[i]}" %s "${XPATH_ELEMENTS[i]:-}"
    done
}

# get_disk_information FILTER: from DRV_ACTION, about the disk with e.g. ATTACH=YES.
get_disk_information() {
    local name pairs=() vm=/VMM_DRIVER_ACTION_DATA/VM
    local disk="$vm/TEMPLATE/DISK[$1]"
    for name in DRIVER TYPE READONLY SHAREABLE CACHE DISCARD DISK_ID CLONE CEPH_HOST CEPH_SECRET CEPH_USER \
        GLUSTER_HOST GLUSTER_VOLUME LUKS_SECRET SHEEPDOG_HOST ISCSI_HOST ISCSI_USAGE ISCSI_USER ISCSI_IQN \
        DISK_TYPE POOL_NAME SIZE ORDER {TOTAL,READ,WRITE}_{BYTES,IOPS}_SEC{,_MAX,_MAX_LENGTH} \
        SIZE_IOPS_SEC VIRTIO_BLK_QUEUES IOTHREAD; do
        pairs+=("$name=$disk/$name")
    done
    pairs+=("IMG_SRC=$disk/SOURCE" "DISK_TARGET=$disk/TARGET" "DISK_TM_MAD=$disk/TM_MAD")
    pairs+=("DISK_IO=$disk/IO" "DISK_SERIAL=$disk/SERIAL" "VMID=$vm/ID" "VCPU=$vm/TEMPLATE/VCPU")
    pairs+=("SD_DISK_BUS=$vm/TEMPLATE/OS/SD_DISK_BUS" "MACHINE=$vm/TEMPLATE/OS/MACHINE")
    pairs+=("VM_VIRTIO_BLK_QUEUES=$vm/TEMPLATE/FEATURES/VIRTIO_BLK_QUEUES")
    _onesdm_document "${pairs[@]}" < <(base64 -d <<<"$DRV_ACTION")
    VCPU=${VCPU:-1}
    DRIVER=${DRIVER:-${DEFAULT_TYPE:-}}
    TYPE=${TYPE,,} READONLY=${READONLY,,} SHAREABLE=${SHAREABLE,,}
    _onesdm_disk_source
}

# What libvirt is told of the disk's place. SOURCE stays the caller's where the disk is a file or device.
# shellcheck disable=SC2034,SC2154 # variables of get_disk_information's answer
_onesdm_disk_source() {
    local kind=${TYPE%%_*} own=$VMID-$DISK_ID
    NAME=${SOURCE:-} AUTH='' LUKS='' SOURCE_ARGS='' SOURCE_HOST=''
    DEVICE=disk
    [[ $TYPE == *cdrom ]] && DEVICE=cdrom
    if [[ $LUKS_SECRET ]]; then
        LUKS="<encryption format='luks'><secret type='passphrase' uuid='$(xml_esc "$LUKS_SECRET")'/></encryption>"
    fi
    case $kind in
    block | iscsi | rbd | sheepdog | gluster) ;;
    cdrom)
        [[ $DISK_TYPE == BLOCK* ]] && kind=block
        ;;
    *) # images that are files, and volatile disks
        kind=${DISK_TYPE,,}
        kind=${kind%%_*}
        # A volatile disk has no image; it lies in the pool of the system datastore.
        [[ $kind == rbd ]] && kind=volatile_rbd
        ;;
    esac
    TYPE_SOURCE=name TYPE_XML=network
    case $kind in
    block)
        TYPE_SOURCE=dev TYPE_XML=block
        ;;
    iscsi)
        SOURCE=${ISCSI_IQN:-$IMG_SRC}
        SOURCE_ARGS="protocol='iscsi'"
        SOURCE_HOST=$(get_source_xml "$ISCSI_HOST")
        [[ $ISCSI_USER && $ISCSI_USAGE ]] && AUTH=$(_onesdm_auth "$ISCSI_USER" iscsi usage "$ISCSI_USAGE")
        ;;
    rbd | volatile_rbd)
        if [[ $kind == volatile_rbd ]]; then
            SOURCE=$POOL_NAME/one-sys-$own
        else
            SOURCE=${IMG_SRC:-${POOL_NAME:-one}/one-sys}
            [[ $CLONE == YES || -z $IMG_SRC ]] && SOURCE+=-$own
        fi
        SOURCE_ARGS="protocol='rbd'"
        SOURCE_HOST=$(get_source_xml "$CEPH_HOST")
        [[ $CEPH_USER && $CEPH_SECRET ]] && AUTH=$(_onesdm_auth "$CEPH_USER" ceph uuid "$CEPH_SECRET")
        ;;
    sheepdog)
        SOURCE=$IMG_SRC
        [[ $CLONE == YES ]] && SOURCE+=-$own
        SOURCE_ARGS="protocol='sheepdog'"
        SOURCE_HOST=$(get_source_xml "$SHEEPDOG_HOST" tcp)
        ;;
    gluster)
        SOURCE=$GLUSTER_VOLUME/${IMG_SRC##*/}
        [[ $CLONE == YES ]] && SOURCE=$GLUSTER_VOLUME/$VMID/disk.$DISK_ID
        SOURCE_ARGS="protocol='gluster'"
        SOURCE_HOST=$(get_source_xml "$GLUSTER_HOST" tcp)
        ;;
    *)
        TYPE_SOURCE=file TYPE_XML=file
        ;;
    esac
    return 0
}

# _onesdm_auth USER TYPE KEY SECRET
_onesdm_auth() {
    printf "<auth username='%s'><secret type='%s' %s='%s'/></auth>\n" "$(xml_esc "$1")" "$2" "$3" "$(xml_esc "$4")"
}

# get_nic_information FILTER: from the driver's message on stdin.
get_nic_information() {
    local vm=/VMM_DRIVER_ACTION_DATA/VM name pairs=()
    local nic="$vm/TEMPLATE/NIC[$1]"
    for name in NIC_ID BRIDGE BRIDGE_TYPE VN_MAD MAC SCRIPT MODEL IP FILTER VIRTIO_QUEUES VROUTER_IP \
        {IN,OUT}BOUND_{AVG_BW,PEAK_BW,PEAK_KB} ORDER; do
        pairs+=("$name=$nic/$name")
    done
    pairs+=("NIC_TARGET=$nic/TARGET" "VMID=$vm/ID")
    _onesdm_document "${pairs[@]}"
}

# send_to_monitor TYPE RESULT OBJECT PAYLOAD: one datagram to monitord; nothing where it is not configured.
send_to_monitor() {
    printf '%s' "$4" | _onesdm monitord send -- "$1" "$2" "$3"
}

# ---------------------------------------------------------------- NFS: these print shell code

# Without a list of datastores nobody knows which mounts have ended: then nothing is unmounted.
autonfs_cleanup_command() {
    local list XPATH_ELEMENTS=() yes
    if ! list=$(onedatastore list -x); then
        log_error 'The list of datastores is not to be had; no NFS mount is given up'
        return 0
    fi
    yes='translate(TEMPLATE/NFS_AUTO_ENABLE, "yes", "YES") = "YES"'
    _onesdm_xpath "%m%/DATASTORE_POOL/DATASTORE[$yes]/ID" <<<"$list"
    if ((${#XPATH_ELEMENTS[@]} == 0)); then
        log_error 'The list of datastores cannot be read; no NFS mount is given up'
        return 0
    fi
    printf 'autonfs_kept=%q\nautonfs_root=%q\n' " ${XPATH_ELEMENTS[0]:-} " "$DS_DIR"
    _onesdm_autonfs_forget
    cat <<'CODE'
for autonfs_dir in $(findmnt -rn -o TARGET -t nfs,nfs4); do
    case ${autonfs_dir#"$autonfs_root"/} in *[!0-9]*) continue ;; esac
    case $autonfs_kept in *" ${autonfs_dir##*/} "*) continue ;; esac
    [ -f "$autonfs_dir/.automounted" ] || continue
    timeout -s KILL 30s sudo umount "$autonfs_dir" || continue
    autonfs_forget "$autonfs_dir"
    rmdir "$autonfs_dir"
done
CODE
}

# autonfs_forget MOUNT_POINT takes its line out of fstab.
_onesdm_autonfs_forget() {
    cat <<CODE
autonfs_forget() {
    printf '\\\\|^[^[:space:]]* %s nfs |d\\n' "\$1" | $SUDO_SED_FSTAB
}
CODE
}

# autonfs_mount_command ID ENABLE HOST PATH OPTIONS
autonfs_mount_command() {
    autonfs_cleanup_command
    [[ ${2,,} == yes ]] || return 0
    _onesdm_autonfs_forget
    printf 'autonfs_dir=%q\nautonfs_line=%q\n' "$DS_DIR/$1" "$3:$4 $DS_DIR/$1 nfs ${5:-defaults} 0 0"
    cat <<CODE
set -e
grep -qxF "\$autonfs_line" /etc/fstab || {
    autonfs_forget "\$autonfs_dir"
    printf '%s\\n' '\$a\\' "\$autonfs_line" | $SUDO_SED_FSTAB
}
mkdir -p "\$autonfs_dir"
timeout -s KILL 30s sudo mount "\$autonfs_dir"
touch "\$autonfs_dir/.automounted"
set +e
CODE
}

# autonfs_tmpsetup_command BASE_PATH ENABLE HOST PATH OPTIONS
autonfs_tmpsetup_command() {
    local dir from options=
    [[ ${2,,} == yes ]] || return 0
    autonfs_cleanup_command
    printf -v dir %q "$1"
    printf -v from %q "$3:$4"
    [[ ${5:-} ]] && printf -v options -- '-o %q ' "$5"
    cat <<CODE
if ! findmnt --source $from --mountpoint $dir >/dev/null; then
    timeout -s KILL 30s sudo mount $options$from $dir
    touch $dir/.automounted
fi
CODE
}
