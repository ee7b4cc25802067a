# shellcheck shell=bash
# What datastore drivers written in bash source after scripts_common.sh: onesdm's own implementation.

# set_up_datastore BASE_PATH RESTRICTED_DIRS SAFE_DIRS
set_up_datastore() {
    local var=/var/lib/one/ etc=/etc/one/
    if [[ ${ONE_LOCATION:-} ]]; then
        var=$ONE_LOCATION/var/ etc=$ONE_LOCATION/etc/
    fi
    export BASE_PATH=$1 RESTRICTED_DIRS="$var $etc $HOME/ ${2:-}" SAFE_DIRS=${3:-}
}

# The format as qemu-img calls it; fails when it knows none.
image_format() {
    $QEMU_IMG info -U "$1" 2>/dev/null | sed -n 's/^file format: \([[:alnum:]_-]*\).*/\1/p' | grep .
}

# Bytes.
image_vsize() {
    $QEMU_IMG info -U --output=json "$1" 2>/dev/null | sed -n 's/^    "virtual-size": \([0-9]*\),*$/\1/p' | grep .
}

# image_size_required HEAD SOURCE: bytes from the start that are enough to recognise the image.
image_size_required() {
    local said
    if ! said=$($QEMU_IMG info -U "$1" 2>&1); then
        if [[ $(head -c 6 -- "$1" | od -An -tx1) == ' 4c 55 4b 53 ba be' ]]; then
            file_size "$2"
            return
        fi
        if [[ $said =~ expecting\ at\ least\ ([0-9]+)\ bytes ]]; then
            echo "${BASH_REMATCH[1]}"
            return
        fi
    fi
    echo 65536
}

# Needs ID.
generate_image_hash() {
    local sum
    sum=$(printf '%s:%s\n' "$($DATE +%s)" "$ID" | $MD5SUM) || {
        log_error 'Error generating the path in generate_image_hash.'
        exit 1
    }
    echo "${sum%% *}"
}

# Needs ID and BASE_PATH.
generate_image_path() {
    local hash
    hash=$(generate_image_hash) || exit
    if [[ -z ${BASE_PATH:-} ]]; then
        log_error 'Error generating the path in generate_image_path.'
        exit 1
    fi
    echo "$BASE_PATH/$hash"
}

# set_downloader_args MD5 SHA1 NO_DECOMPRESS LIMIT SRC DST: arguments for a shell that reads them.
set_downloader_args() {
    local out='' path
    [[ ${1:-} ]] && out+="--md5 $1 "
    [[ ${2:-} ]] && out+="--sha1 $2 "
    [[ ${3,,} == yes ]] && out+='--nodecomp '
    [[ ${4:-} ]] && out+="--limit $4 "
    for path in "${@:5:2}"; do
        [[ $path ]] && out+="'${path//\'/\'\\\'\'}' "
    done
    printf '%s\n' "${out% }"
}

# Sizes in bytes, the second and later ones unpacked.
file_size() {
    stat -L -c %s -- "$1"
}

file_type() {
    file -b --mime-type -- "$1" | tr '[:upper:]' '[:lower:]'
}

# Unpacked, because what gzip notes of the size ends at 4 GiB.
gzip_file_size() {
    gzip -dc -- "$1" | wc -c
}

xz_file_size() {
    xz -l --robot -- "$1" | awk '$1 == "totals" { print $5 }'
}

bzip_file_size() {
    bzip2 -dc -- "$1" | wc -c
}

# fs_size SRC NO_DECOMPRESS LIMIT: MiB rounded up, as the driver's stat finds it; on an error prints why.
fs_size() {
    local path=$1 said rc=0 base=${BASE_PATH:-${DS_DIR:-/var/lib/one/datastores}/0}
    [[ $path == *://* ]] || path=$(realpath -ms -- "$path")
    said=$(
        {
            printf '<DS_DRIVER_ACTION_DATA><IMAGE><PATH>%s</PATH></IMAGE>' "$(xml_esc "$path")"
            printf '<DATASTORE><ID>0</ID><BASE_PATH>%s</BASE_PATH><TEMPLATE>' "$(xml_esc "$base")"
            printf '<SAFE_DIRS>/</SAFE_DIRS><NO_DECOMPRESS>%s</NO_DECOMPRESS>' "$(xml_esc "${2:-}")"
            [[ ${3:-} ]] && printf '<LIMIT_TRANSFER_BW>%s</LIMIT_TRANSFER_BW>' "$(xml_esc "$3")"
            printf '</TEMPLATE></DATASTORE></DS_DRIVER_ACTION_DATA>'
        } | _onesdm --as datastore/fs/stat -- 0 2>&1
    ) || rc=$?
    printf '%s\n' "$said"
    return "$rc"
}

# Prints 1 when an image may not be read from there. A directory of the lists means what lies below it, and
# not what only begins alike.
check_restricted() {
    local real dir
    real=$($READLINK -m -- "$1")
    for dir in ${SAFE_DIRS:-}; do
        if _onesdm_below "$real" "$dir"; then
            echo 0
            return
        fi
    done
    for dir in ${RESTRICTED_DIRS:-}; do
        if _onesdm_below "$real" "$dir"; then
            echo 1
            return
        fi
    done
    echo 0
}

# _onesdm_below PATH DIR
_onesdm_below() {
    local dir
    dir=$($READLINK -m -- "$2")
    [[ $dir == / || $1/ == "$dir"/* ]]
}

# remove_off_hosts "HOST..": those that OpenNebula does not have as off, in error or disabled. All of them, and
# status 1, when it does not answer.
remove_off_hosts() {
    local off host left=()
    if ! off=$(onehost list --operator OR --no-pager --csv \
        --filter='STAT=off,STAT=err,STAT=dsbl' --list=NAME,STAT 2>/dev/null); then
        echo "$1"
        return 1
    fi
    off=$'\n'$(tail -n +2 <<<"$off" | cut -d, -f1)$'\n'
    for host in $1; do
        [[ $off == *$'\n'"$host"$'\n'* ]] || left+=("$host")
    done
    echo "${left[*]}"
}

# get_destination_host [ID]: one of BRIDGE_LIST in turn by the id, or any.
get_destination_host() {
    local hosts n=${1:-$RANDOM}
    read -ra hosts <<<"$(remove_off_hosts "${BRIDGE_LIST:-}")"
    if ((${#hosts[@]} == 0)); then
        [[ -z ${BRIDGE_LIST:-} ]] && return 0
        error_message "All hosts from 'BRIDGE_LIST' are offline, error or disabled"
        exit 255
    fi
    echo "${hosts[n % ${#hosts[@]}]}"
}
