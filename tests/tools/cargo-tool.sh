#!/bin/sh
# cargo-tool.sh NAME: installs a pinned program from crates.io into target/tools once, and prints the folder that holds it.
#
# Without optimisation and debug information, because these programs run for seconds. Their C code is optimised, since that
# is what compresses.
set -eu
repository=$(cd "$(dirname "$0")/../.." && pwd)

case ${1:-} in
cargo-deb) version=3.8.0 ;;
cargo-generate-rpm) version=0.21.1 ;;
cargo-cyclonedx) version=0.5.9 ;;
*)
    echo "$(basename "$0"): no version is pinned for '${1:-}' (cargo-deb, cargo-generate-rpm, cargo-cyclonedx)" >&2
    exit 1
    ;;
esac
tools=${CARGO_TARGET_DIR:-$repository/target}/tools
root=$tools/$1-$version
if [ ! -x "$root/bin/$1" ]; then
    echo "installing $1 $version from crates.io into $root" >&2
    for pause in 5 20 0; do
        # Elsewhere than the repository: its target folder is not for the dependencies of tools.
        if (cd / && CARGO_TARGET_DIR=$tools/build CARGO_PROFILE_DEV_DEBUG=0 CFLAGS="${CFLAGS:-} -O2" \
            cargo install --quiet --locked --debug --root "$root" --version "=$version" "$1") >&2; then
            rm -rf "$tools/build"
            echo "$root/bin"
            exit 0
        fi
        sleep "$pause"
    done
    echo "$(basename "$0"): cargo could not install $1 $version (its words are above)" >&2
    exit 1
fi
echo "$root/bin"
