#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs the Debian packages of the kernel tests, and downloads files that are only unpacked: Prometheus for the
# metrics and alert rules, the seccomp filter of container runtimes, and a kernel for the guest (kernel.sh). Returns at
# once if nothing is missing. Usage:
# install.sh [--tools|--promtool|--compiler]
#   --tools      only the tools for tests in network namespaces: no QEMU and no kernel
#   --promtool   only what `make check` needs: Prometheus with promtool, as target/guest/prometheus, and a reader of YAML
#   --compiler   only the C++ compiler that builds libFuzzer
# KUBE_IPVS_KERNEL selects the Debian suite of the kernel.
set -euo pipefail

tools=(ipvsadm ipset iptables nftables iproute2 conntrack kmod util-linux procps crun busybox-static)
machine=(cpio xz-utils zstd)
qemu=(qemu-system-x86 qemu-system-common qemu-system-data seabios ipxe-qemu)

workspace=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
guest_dir=${CARGO_TARGET_DIR:-$workspace/target}/guest

die() { echo "install.sh: $*" >&2; exit 1; }

# Prints the packages of "$@" that are not installed.
missing() {
    local package
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || echo "$package"
    done
}

# Prints the packages that an installation of "$@" would remove.
removed_by() {
    apt-get install -s -q --no-install-recommends "$@" 2>/dev/null | sed -n 's/^Remv \([^ ]*\).*/\1/p'
}

# Installs the missing packages of "$@". Never removes a package of the machine.
install_packages() {
    local -a absent
    local removed
    command -v apt-get >/dev/null || die "this is not a Debian system; install these yourself: $*"
    mapfile -t absent < <(missing "$@")
    [[ ${#absent[@]} -gt 0 ]] || return 0
    if [[ $(id -u) -ne 0 ]]; then
        die "packages are missing and only root can install them; run:
    sudo apt-get update && sudo apt-get install -y --no-remove --no-install-recommends ${absent[*]}"
    fi
    echo "install.sh: installing ${absent[*]}" >&2
    apt-get update -q >&2
    removed=$(removed_by "${absent[@]}" | tr '\n' ' ')
    [[ -z $removed ]] || die "apt would remove ${removed% } to install ${absent[*]}; install them by hand, or \
remove ${removed% } yourself"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-remove --no-install-recommends "${absent[@]}" >&2
}

# Uses the machine's QEMU, or installs it. If installing would remove packages of the machine, such as a newer
# qemu-utils, QEMU is only unpacked into $guest_dir/qemu, and its libraries are installed.
provide_qemu() {
    local package work
    local -a libraries
    PATH=$PATH:/usr/sbin command -v qemu-system-x86_64 >/dev/null && return 0
    [[ ! -e $guest_dir/qemu/complete ]] || return 0
    [[ $(id -u) -ne 0 ]] || apt-get update -q >&2
    if [[ -z $(removed_by qemu-system-x86) ]]; then
        install_packages qemu-system-x86
        return
    fi
    echo "install.sh: unpacking ${qemu[*]}: installing them would remove $(removed_by qemu-system-x86 | tr '\n' ' ')" >&2
    mapfile -t libraries < <(apt-cache depends --important "${qemu[@]}" 2>/dev/null |
        sed -n 's/^ *Depends: \(lib[^ ]*\)$/\1/p' | sort -u)
    install_packages "${libraries[@]}"
    mkdir -p "$guest_dir"
    work=$(mktemp -d "$guest_dir/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    (cd "$work" && apt-get download -q "${qemu[@]}" >&2) || die "cannot download ${qemu[*]}"
    for package in "$work"/*.deb; do dpkg -x "$package" "$work/files"; done
    rm -rf "$guest_dir/qemu"
    mv "$work/files" "$guest_dir/qemu"
    : > "$guest_dir/qemu/complete"
    rm -rf "$work"
    trap - EXIT
}

# update_lists PACKAGE: called after a failed download. Outdated lists name versions that the mirror no longer has.
update_lists() {
    [[ $(id -u) -eq 0 ]] || die "cannot download $1; run 'apt-get update' as root and try again"
    apt-get update -q >&2
}

# fetch_path PACKAGE PATH NAME: extracts a file or folder of a package to $guest_dir/NAME. The package is not installed:
# Prometheus would run as a service.
fetch_path() {
    local work
    [[ ! -e $guest_dir/$3 ]] || return 0
    echo "install.sh: fetching $3 of $1" >&2
    mkdir -p "$guest_dir"
    work=$(mktemp -d "$guest_dir/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    if ! (cd "$work" && apt-get download -q "$1" >&2); then
        update_lists "$1"
        (cd "$work" && apt-get download -q "$1" >&2) || die "cannot download $1"
    fi
    dpkg -x "$work"/*.deb "$work/files"
    [[ -e $work/files/$2 ]] || die "$1 holds no $2"
    mv "$work/files/$2" "$guest_dir/$3"
    rm -rf "$work"
    trap - EXIT
}

fetch_prometheus() { fetch_path prometheus usr/bin prometheus; }

# The default seccomp filter of container runtimes.
fetch_seccomp() { fetch_path golang-github-containers-common usr/share/containers/seccomp.json seccomp.json; }

case ${1:-} in
--compiler)
    command -v c++ >/dev/null || install_packages g++
    exit 0
    ;;
--promtool) install_packages python3-yaml ;;
--tools)
    install_packages "${tools[@]}"
    fetch_seccomp
    ;;
*)
    install_packages "${tools[@]}" "${machine[@]}"
    provide_qemu
    fetch_seccomp
    "$workspace/integration/guest/kernel.sh" "${KUBE_IPVS_KERNEL:-}"
    ;;
esac
fetch_prometheus
