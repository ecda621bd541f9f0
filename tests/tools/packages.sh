#!/bin/sh
# packages.sh: makes a .deb and an .rpm of target/release/outbox-relay, with checksums, in target/packages.
#
# What goes into them is in Cargo.toml ([package.metadata.deb] and [package.metadata.generate-rpm]). VERSION gives them
# another version than that of Cargo.toml, and EXAMPLE another example of settings; both are for tests.
set -eu
tools=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$tools/../.." && pwd)
cd "$repository"
program=target/release/outbox-relay
packages=target/packages
files=$packages/files
[ -x "$program" ] || { echo "$(basename "$0"): $program is missing: make build" >&2; exit 1; }

deb=$(sh "$tools/cargo-tool.sh" cargo-deb)
rpm=$(sh "$tools/cargo-tool.sh" cargo-generate-rpm)

rm -rf "$packages"
mkdir -p "$files"
"$program" generate man "$files/man"
gzip -9n "$files"/man/*.1
for shell in bash zsh fish; do
    "$program" generate completions "$shell" >"$files/outbox-relay.$shell"
done
# Packages own /usr, not /usr/local.
sed 's|/usr/local/bin/|/usr/bin/|' deploy/systemd/outbox-relay.service >"$files/outbox-relay.service"
# Every setting is a comment: the examples of queues are nobody's, and the unit names the file with the connection string.
{
    echo '# Settings of the service outbox-relay. DATABASE_URL is not among them: /etc/outbox-relay/database-url holds it.'
    sed '/^# Every setting of outbox-relay/,/^$/d; s/^\([A-Z]\)/#\1/' "${EXAMPLE:-.env.example}"
} >"$files/environment"

# Files are as old as the commit, so that the same sources make the same packages.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
# The symbols stay, for backtraces with names.
"$deb/cargo-deb" deb --quiet --locked --no-build --no-strip ${VERSION:+--deb-version "$VERSION-1"} --output "$packages/"
"$rpm/cargo-generate-rpm" generate-rpm ${VERSION:+--set-metadata "version = \"$VERSION\""} --output "$packages/"
(cd "$packages" && sha256sum -- *.deb *.rpm >SHA256SUMS)
ls "$packages"/*.deb "$packages"/*.rpm "$packages/SHA256SUMS"
