#!/bin/sh
# Checks release-notes.sh with a change log of its own.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cat >"$work/log.md" <<'LOG'
# Changelog

## [Unreleased]

- not yet

## [1.10.0] - 2026-02-01

### Added

- ten

## [1.1.0] - 2026-01-01

- one

## [1.0.0]

## [0x9.0]

- odd
LOG

# prints VERSION TEXT
prints() {
    found=$(sh "$here/release-notes.sh" "$1" "$work/log.md")
    [ "$found" = "$2" ] && return
    printf 'for %s it prints:\n%s\n' "$1" "$found"
    exit 1
}
# refuses VERSION [FILE]
refuses() {
    if sh "$here/release-notes.sh" "$1" "${2:-$work/log.md}" >"$work/out" 2>&1; then
        echo "it has notes for $1"
        exit 1
    fi
    grep -q "$1\|cannot be read" "$work/out" || { cat "$work/out"; exit 1; }
}
prints 1.10.0 '### Added

- ten'
prints 1.1.0 '- one'
refuses 1.0.0 # An empty section.
refuses 1.1
refuses 0.9.0
refuses 2.0.0
refuses 1.1.0 "$work/missing.md"
