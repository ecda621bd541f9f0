#!/bin/sh
# photograph.sh PAGE.html PICTURE.png [HEIGHT]: opens the page in a headless Chromium and saves what it looks like: all of it,
# or its first HEIGHT pixels.
set -eu
page=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
picture=$2

chromium=$(sh "$(dirname "$0")/../chromium.sh") || {
    echo "$(basename "$0"): the page is $page" >&2
    exit 1
}

# The page contains its height.
height=${3:-$(sed -n 's/.*data-height="\([0-9]*\)".*/\1/p' "$page" | head -n 1)}
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
# Chromium has no sandbox as root, and the page is our own.
"$chromium" --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$profile" \
    --window-size="1600,${height:-2400}" --screenshot="$profile/picture.png" "file://$page" 2>"$profile/log" ||
    { cat "$profile/log" >&2; exit 1; }
mv "$profile/picture.png" "$picture"
echo "written: $picture"
