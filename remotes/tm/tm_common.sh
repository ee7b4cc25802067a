# shellcheck shell=bash
# What transfer-manager drivers written in bash source, besides scripts_common.sh: onesdm's own implementation.

# shellcheck source=remotes/scripts_common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts_common.sh"

# host:path arguments. Without a colon the text is both.
arg_host() {
    printf '%s\n' "${1%%:*}"
}

# arg_path ARG [NOFIX]
arg_path() {
    local path=${1#*:}
    if [[ ${2:-} == NOFIX ]]; then
        printf '%s\n' "$path"
    else
        fix_dir_slashes "$path"
    fi
}

# Prints 1 or 0.
is_disk() {
    if [[ $1 =~ /disk\.[0-9]+ ]]; then echo 1; else echo 0; fi
}

# make_relative SRC DST: the way from directory DST to SRC.
make_relative() {
    local src dst up=''
    src=$(fix_dir_slashes "$1")
    dst=$(fix_dir_slashes "$2")
    while [[ $dst != / && $src/ != "$dst"/* ]]; do
        dst=$(dirname -- "$dst")
        up+=../
    done
    [[ $dst == / ]] && dst=
    src=${src#"$dst"}
    src=$up${src#/}
    printf '%s\n' "${src:-.}"
}

# _onesdm_vm ID XPATH: what oned has on record; fails when it does not answer.
_onesdm_vm() {
    local vm XPATH_ELEMENTS=()
    vm=$(onevm show -x "$1") || return
    _onesdm_xpath "$2" <<<"$vm"
    printf '%s\n' "${XPATH_ELEMENTS[0]:-}"
}

# Of the disk DST_PATH of VM VMID.
disk_type() {
    _onesdm_vm "$VMID" "/VM/TEMPLATE/DISK[DISK_ID=${DST_PATH##*.}]/TYPE"
}

# lcm_state [VMID]
lcm_state() {
    _onesdm_vm "${1:-$VMID}" /VM/LCM_STATE
}

# is_undeployed VMID HOST: whether it was last on another host. When oned does not answer nobody knows, and
# "no" is what makes nobody work on the wrong machine.
is_undeployed() {
    local last
    last=$(_onesdm_vm "${1:-$VMID}" '/VM/HISTORY_RECORDS/HISTORY[last()]/HOSTNAME') || return 1
    [[ $last != "$2" ]]
}

# migrate_other ARGS..: the same verb of the other drivers that the VM's disks have. A sixth argument says
# that we were called that way ourselves.
migrate_other() {
    local dir own verb=${0##*/} mad done=' ' XPATH_ELEMENTS=()
    dir=$(dirname -- "$0")
    own=${dir##*/}
    [[ ${6:-} ]] && return 0
    _onesdm_xpath '%m%/VM/TEMPLATE/DISK/TM_MAD' < <(base64 -d <<<"$TEMPLATE_64")
    for mad in ${XPATH_ELEMENTS[0]:-}; do
        [[ $mad == "$own" || $done == *" $mad "* || $mad == */* ]] && continue
        done+="$mad "
        log "Call $mad/$verb"
        printf '%s\n' "$TEMPLATE_64" | "$dir/../$mad/$verb" "$@" "$own"
    done
    return 0
}

# rebase_backing_files NAME: in the current directory. Drivers also send its text to hosts, so it needs nothing
# of this file.
rebase_backing_files() {
    local file info
    for file in *; do
        [[ -f $file && ! -L $file ]] || continue
        info=$(qemu-img info -U --output=json "./$file") || continue
        [[ $info =~ \"backing-filename\":\ \"([^\"]*)\" ]] || continue
        qemu-img rebase -f qcow2 -F qcow2 -u -b "$1.snap/${BASH_REMATCH[1]##*/}" "./$file"
    done
}

# qcow_dir_cmd SRC DST create|convert: prints the script that makes DST a link into DST.snap with its first
# layer over, or copied from, SRC.
qcow_dir_cmd() {
    local src dst dir name
    printf -v src %q "$1"
    printf -v dst %q "$2"
    printf -v dir %q "$(dirname -- "$2")"
    printf -v name %q "${2##*/}"
    cat <<CODE
set -e -o pipefail
cd $dir
rm -rf $dst.snap
mkdir -p $dst.snap
CODE
    case $3 in
    convert) echo "$QEMU_IMG convert -q -O qcow2 $src $dst.snap/0" ;;
    create)
        cat <<CODE
backing_fmt=\$($QEMU_IMG info -U $src | sed -n 's/^file format: //p') || :
$QEMU_IMG create -o backing_fmt="\${backing_fmt:-raw}" -b $src -f qcow2${QCOW2_OPTIONS:+ $QCOW2_OPTIONS} $dst.snap/0
CODE
        ;;
    esac
    cat <<CODE
ln -sfn . $dst.snap/$name.snap
rm -f $dst
ln -s $name.snap/0 $dst
cd - >/dev/null
CODE
}

is_yes() {
    [[ $1 == yes || $1 == YES || $1 == true || $1 == TRUE ]]
}
