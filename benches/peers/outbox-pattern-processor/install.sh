#!/bin/sh
# A library: main.rs beside this file starts it as its README does. Cargo.lock fixes the versions.
cargo build --locked --quiet --release --manifest-path "$PEER_FOLDER/Cargo.toml" --target-dir "$PEER_HOME/build" ||
    { echo "cargo cannot build outbox-pattern-processor $VERSION" >&2; exit 1; }
