#!/bin/sh
# Prints the section of a version in CHANGELOG.md, for the notes of its release.
#
#   tests/tools/release-notes.sh 0.1.0            from this repository's CHANGELOG.md
#   tests/tools/release-notes.sh 0.1.0 FILE       from another one
set -eu

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

version=${1:?usage: release-notes.sh VERSION [FILE]}
changelog=${2:-$(dirname "$0")/../../CHANGELOG.md}
[ -r "$changelog" ] || fail "$changelog cannot be read"

# The heading is `## [0.1.0]`, with or without a date behind it.
grep -q "^## " "$changelog" || fail "$changelog has no headings of versions (## [VERSION])"
notes=$(awk -v heading="## [$version]" '
    /^## / { inside = $0 == heading || index($0, heading " ") == 1; next }
    inside { print }' "$changelog")
[ -n "$(printf %s "$notes" | tr -d ' \n')" ] ||
    fail "$changelog has no section, or an empty one, for $version; head one with: ## [$version] - $(date -u +%Y-%m-%d)"
# Without the blank lines around it; the shell has removed those at the end.
printf '%s\n' "$notes" | sed '/./,$!d'
