#!/bin/sh
# chromium.sh: prints the path of Chromium, and installs Debian's if there is none and that is allowed.
set -eu

find_chromium() {
    for name in chromium chromium-browser google-chrome; do
        command -v "$name" && return
    done
    return 1
}

if ! find_chromium; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium; } >&2
    fi
    find_chromium || {
        echo "$(basename "$0"): no Chromium here: install one, for example by: apt-get install chromium" >&2
        exit 1
    }
fi
