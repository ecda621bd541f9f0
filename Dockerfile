# syntax=docker/dockerfile:1

FROM rust:1.95-trixie AS build
WORKDIR /build

# The dependencies are a layer of their own, which stays until Cargo.toml or Cargo.lock change: every target that the
# manifest names gets an empty stand-in, and the stand-in of the relay is built.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && touch src/lib.rs \
    && sed -n 's/^path = "\(.*\)"$/\1/p' Cargo.toml | while read -r path; do \
        mkdir -p "$(dirname "$path")" && echo 'fn main() {}' >"$path"; \
    done \
    && cargo build --locked --release --bin outbox-relay

COPY sql sql
COPY src src
# Sources keep their age when they are copied, and cargo would take the stand-ins for newer.
RUN find src -name '*.rs' -exec touch {} + && cargo build --locked --release --bin outbox-relay

# Distroless and not a slim Debian: the relay needs the C library, libgcc and the CA certificates, and nothing else is
# there to be patched or misused: no shell, no package manager. It runs as user 65532 and writes no file, so that the root
# file system may be read-only. The same Debian release as above, for the C library.
FROM gcr.io/distroless/cc-debian13:nonroot
COPY --from=build /build/target/release/outbox-relay /usr/local/bin/outbox-relay
EXPOSE 9595
# Whether the relay lives, not whether its database does: restarting it would not help that.
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s CMD ["outbox-relay", "healthcheck"]
# The form without a shell hands SIGTERM to the relay itself; give it longer than OUTBOX_RELAY_DRAIN_TIMEOUT to stop.
ENTRYPOINT ["outbox-relay"]
CMD ["run"]
