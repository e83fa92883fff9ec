#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Downloads a kernel for the guest and unpacks it, without installing it. Returns at once if the kernel exists. Usage:
# kernel.sh [SUITE]
#   without SUITE   linux-image-amd64 from the machine's apt sources, into target/guest/kernel
#   SUITE           the same package of this Debian suite, into target/guest/kernels/SUITE. The package lists of the
#                   suite are separate from the machine's, so root is not needed.
# The folder contains boot/vmlinuz-VERSION, optionally boot/vmlinux, lib/modules/VERSION and version.
set -euo pipefail

workspace=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
guest_dir=${CARGO_TARGET_DIR:-$workspace/target}/guest
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
suite=${1:-}
kernel=$guest_dir/kernel
[[ -z $suite ]] || kernel=$guest_dir/kernels/$suite

die() { echo "kernel.sh: $*" >&2; exit 1; }

[[ $suite =~ ^[a-z]*$ ]] || die "'$suite' is not the name of a suite of Debian, such as bookworm or sid"
[[ ! -e $kernel/version ]] || exit 0
command -v apt-get >/dev/null || die "this is not a Debian system: there is no apt-get to fetch a kernel with"

mkdir -p "$guest_dir"
work=$(mktemp -d "$guest_dir/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

# --- sources of packages ------------------------------------------------------------------------

# The machine's Debian mirror, then Debian's own servers. Suites move to the archive some years after their last change.
mirrors() {
    apt-get indextargets --format '$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        sed -n 's/^Debian|//p' | sort -u
    echo http://deb.debian.org/debian/
    echo http://archive.debian.org/debian/
}

# Sets apt_options so that apt uses only SUITE of one mirror. The machine's proxies and logins still apply. Lists in the
# archive have expired; their signatures are still checked.
use_suite() {
    local mirror dated log=$work/apt.log
    [[ -e $keyring ]] || die "$keyring is missing; install the package debian-archive-keyring"
    mkdir -p "$work"/lists/partial "$work"/cache/archives/partial
    apt_options=(-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
        -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o Dir::State::status=/dev/null
        -o APT::Default-Release= -o APT::Sandbox::User=root)
    while read -r mirror; do
        dated=
        [[ $mirror != *://archive.debian.org/* ]] || dated=" check-valid-until=no"
        echo "deb [arch=amd64 target=Packages signed-by=$keyring$dated] $mirror $suite main" > "$work/sources.list"
        echo "--- $mirror" >> "$log"
        apt-get "${apt_options[@]}" update -q >> "$log" 2>&1 || true
        package=$(kernel_package)
        [[ -z $package ]] || return 0
    done < <(mirrors | awk '!seen[$0]++')
    sed 's/^/    /' "$log" >&2
    die "no mirror has linux-image-amd64 of Debian's suite $suite; what apt said is above"
}

# depends PACKAGE: the names of its dependencies.
depends() {
    apt-cache "${apt_options[@]}" show --no-all-versions "$1" 2>/dev/null |
        sed -n 's/^Depends: //p' | tr ',|' '\n\n' | awk '{ print $1 }'
}

# The real package behind linux-image-amd64, for example linux-image-6.1.0-56-amd64. The cloud image lacks 9p.
kernel_package() {
    depends linux-image-amd64 | grep '^linux-image-[0-9]' | head -n 1 || true
}

# The packages with the kernel and its modules: one, or since 7.x also the dependencies that contain them.
packages() {
    echo "$package"
    depends "$package" | grep -xF -e "${package/image/base}" -e "${package/image/binary}" -e "${package/image/modules}" || true
}

download() {
    local -a names
    mapfile -t names < <(packages)
    (cd "$work" && apt-get "${apt_options[@]}" download -q "${names[@]}" >&2)
}

# Outdated lists of the machine name versions that the mirror no longer has.
update_lists() {
    [[ $(id -u) -eq 0 ]] || die "cannot download ${package:-linux-image-amd64}; run 'apt-get update' as root and try again"
    apt-get update -q >&2
    package=$(kernel_package)
    [[ -n $package ]] || die "apt does not know linux-image-amd64"
}

# --- unpacking ---------------------------------------------------------------------------------------

# number FILE OFFSET BYTES
number() { od -An -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '; }

# Extracts the kernel from a vmlinuz, see the kernel's Documentation/x86/boot. QEMU boots it directly; unpacking it in
# an emulated machine takes four seconds. Optional, because QEMU also boots a vmlinuz.
unpack_vmlinux() {
    local packed=$1 plain=$2 start length size
    local -a unpack
    start=$((($(number "$packed" $((0x1f1)) 1) + 1) * 512 + $(number "$packed" $((0x248)) 4)))
    length=$(number "$packed" $((0x24c)) 4)
    case $(od -An -t x1 -j "$start" -N 4 "$packed" | tr -d ' ') in
    fd377a58) unpack=(xz -dc --single-stream) ;;
    28b52ffd) unpack=(zstd -dcq) ;;
    1f8b08*) unpack=(gzip -dcq) ;;
    *) return 0 ;;
    esac
    # The unpacked size follows the packed data. The programs warn about it and continue.
    size=$(number "$packed" $((start + length - 4)) 4)
    (tail -c "+$((start + 1))" "$packed" || true) | head -c "$length" | "${unpack[@]}" > "$plain" 2>/dev/null || true
    [[ $(stat -c %s "$plain") -eq $size ]] || rm -f "$plain"
}

# Unpacked modules load faster, and every modprobe and insmod can load them.
unpack_modules() {
    local ending
    local -A unpack=([xz]="xz -d" [zst]="zstd -dq --rm" [gz]="gzip -d")
    for ending in "${!unpack[@]}"; do
        find "$1" -name "*.ko.$ending" -print0 | xargs -0 -r -n 64 -P 2 ${unpack[$ending]}
    done
}

# --- main ------------------------------------------------------------------------------------

apt_options=() package=
if [[ -n $suite ]]; then
    use_suite
else
    package=$(kernel_package)
    [[ -n $package ]] || update_lists
fi
version=${package#linux-image-}
echo "kernel.sh: fetching $package${suite:+ of $suite}" >&2
if ! download; then
    [[ -z $suite ]] || die "cannot download $package of Debian's suite $suite"
    update_lists
    version=${package#linux-image-}
    download || die "cannot download $package"
fi

tree=$work/kernel
mkdir "$tree"
for file in "$work"/*.deb; do dpkg -x "$file" "$tree"; done
# With a merged /usr the modules are in /usr/lib, and since 7.x the kernel is in their folder.
if [[ ! -e $tree/lib && -d $tree/usr/lib/modules ]]; then ln -s usr/lib "$tree/lib"; fi
if [[ -e $tree/lib/modules/$version/vmlinuz ]]; then
    mkdir -p "$tree/boot"
    mv "$tree/lib/modules/$version/vmlinuz" "$tree/boot/vmlinuz-$version"
fi
[[ -e $tree/boot/vmlinuz-$version && -d $tree/lib/modules/$version/kernel ]] ||
    die "$package holds no kernel, or no modules, of version $version"
unpack_modules "$tree/lib/modules/$version/"
PATH=$PATH:/usr/sbin:/sbin depmod -b "$tree" "$version"
unpack_vmlinux "$tree/boot/vmlinuz-$version" "$tree/boot/vmlinux"
# Write the version file last: a folder without it is incomplete.
echo "$version" > "$tree/version"
mkdir -p "$(dirname "$kernel")"
rm -rf "$kernel"
mv "$tree" "$kernel"
