#!/bin/sh
# package-check.sh: makes the packages, installs, upgrades and removes them in fresh roots, and prints a line for each thing
# that was verified. `package-check.sh PART…` verifies only these parts; `make build` must have run.
#
#   deb    Debian's package in a minimal bookworm and trixie, upgrades, purge, lintian
#   rpm    the other one: what it requires, installation, upgrades, removal
#   files  manual pages, completions, the unit
#   sbom   the list of crates in the program
#   crate  what `cargo package` packs builds by `cargo install`
#   arm64  the program for the other architecture, run by an emulator
#
# It needs root on Debian. The roots stay in target/package-check for the next run.
set -eu
tools=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$tools/../.." && pwd)
cd "$repository"
work=$repository/target/package-check
packages=$repository/target/packages
began=$(date +%s)
PATH=$PATH:/usr/sbin:/sbin

say() { printf '  %-10s %s\n' "$1" "$2"; }

# fail WHAT [LOG…]: with the last lines of the logs that tell why.
fail() {
    echo "FAILED: $1" >&2
    shift
    for log in "$@"; do
        [ ! -s "$log" ] || { echo "--- the end of $log:" >&2; tail -n 25 "$log" >&2; }
    done
    exit 1
}
# logged NAME COMMAND…: a step whose words matter only if it fails.
logged() {
    log=$work/$1.log
    shift
    "$@" >"$log" 2>&1 </dev/null || fail "$*" "$log"
}
took() { echo "$(($(date +%s) - $1)) s"; }

[ "$(id -u)" = 0 ] || fail "package-check needs root, to install packages into roots of their own"
needed=
for tool in debootstrap:debootstrap rpm:rpm lintian:lintian man:man-db systemd-analyze:systemd zsh:zsh fish:fish \
    bash:bash node:nodejs file:file; do
    command -v "${tool%%:*}" >/dev/null || needed="$needed ${tool#*:}"
done
[ -e /usr/share/bash-completion/bash_completion ] || needed="$needed bash-completion"
install_debian() {
    command -v apt-get >/dev/null || fail "these Debian packages are missing:$*"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"; } >&2 </dev/null ||
        fail "apt-get could not install $*"
}
[ -z "$needed" ] || install_debian $needed

mkdir -p "$work"
exec 9>"$work/lock"
flock -n 9 || fail "another package-check is running in $work"
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
trap 'exit 1' HUP INT TERM

version=$(sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' Cargo.toml)

# root RELEASE FOLDER: a copy of a minimal Debian.
root() {
    if [ ! -e "$work/$1/etc/debian_version" ]; then
        for pause in 5 20 0; do
            rm -rf "$work/$1" "$work/$1.part"
            if timeout 600 debootstrap --variant=minbase "$1" "$work/$1.part" \
                ${DEBIAN_MIRROR:-$(sh "$tools/image/bases.sh" mirror)} >"$work/debootstrap.log" 2>&1; then
                rm -rf "$work/$1.part/var/cache/apt/archives" "$work/$1.part/var/lib/apt/lists"
                mv "$work/$1.part" "$work/$1"
                break
            fi
            sleep "$pause"
        done
        [ -e "$work/$1/etc/debian_version" ] || fail "debootstrap made no $1" "$work/debootstrap.log"
    fi
    cp -a "$work/$1" "$2"
}

# Two versions: the second has another example of settings.
make_packages() {
    start=$(date +%s)
    { sed 's/=20ms$/=25ms/' .env.example && echo '#OUTBOX_RELAY_ADDED_LATER=1'; } >"$run/example"
    VERSION=$version.1 EXAMPLE=$run/example logged packages-next sh "$tools/packages.sh"
    mkdir "$run/next"
    mv "$packages"/*.deb "$packages"/*.rpm "$run/next/"
    logged packages sh "$tools/packages.sh"
    deb=$(ls "$packages"/*.deb)
    rpm=$(ls "$packages"/*.rpm)
    next_deb=$(ls "$run"/next/*.deb)
    next_rpm=$(ls "$run"/next/*.rpm)
    (cd "$packages" && sha256sum --check --quiet SHA256SUMS) || fail "SHA256SUMS is wrong"
    say packages "$(basename "$deb") $(($(stat -c %s "$deb") / 1024)) KiB, $(basename "$rpm") $(($(stat -c %s "$rpm") / 1024)) KiB, checksums, in $(took "$start")"
}

. "$tools/packages/deb.sh"
. "$tools/packages/rpm.sh"
. "$tools/packages/files.sh"
. "$tools/packages/sources.sh"

parts=${*:-deb rpm files sbom crate arm64}
echo "the packages"
make_packages
for part in $parts; do
    case $part in
    deb | rpm | files | sbom | crate | arm64) "check_$part" ;;
    *) fail "there is no part '$part' (deb, rpm, files, sbom, crate, arm64)" ;;
    esac
done
echo "PASSED in $(took "$began")"
