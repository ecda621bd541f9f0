#!/bin/sh
# Installs tools that only Debian packages: installs what is missing if allowed, otherwise names it.
#
# It never fails. Tests that need a missing tool fail and say so themselves.
set -eu

# tool:package
tools="promtool:prometheus pgbouncer:pgbouncer valgrind:valgrind"

# Servers are here, and this folder is not in everybody's path.
PATH=$PATH:/usr/sbin

packages=
for tool in $tools; do
    command -v "${tool%%:*}" >/dev/null || packages="$packages ${tool#*:}"
done
[ -n "$packages" ] || exit 0

# A package that is installed for its tools must not start its server. Debian's policy-rc.d prevents that.
policy=/usr/sbin/policy-rc.d
install() {
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 1' HUP INT TERM
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    apt-get update -q &&
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages
}

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    why="only root can install it, with apt-get"
elif install >&2 </dev/null; then
    exit 0
else
    why="apt-get could not install it, see above"
fi
for tool in $tools; do
    command -v "${tool%%:*}" >/dev/null ||
        echo "$(basename "$0"): ${tool%%:*} is missing ($why; its Debian package is ${tool#*:}): the tests that need it will fail" >&2
done
