#!/bin/sh
cargo install --locked --quiet --root "$PEER_HOME" "pg-outbox-relay@$VERSION" ||
    { echo "crates.io has no pg-outbox-relay $VERSION, and there is no other package of it" >&2; exit 1; }
