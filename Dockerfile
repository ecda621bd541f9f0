# syntax=docker/dockerfile:1

# Builds the image of the relay, for the architecture of whoever builds it. `make image-check` builds and runs it without
# Docker and without a registry.
#
#   docker build -t outbox-relay \
#       --build-arg BUILD_COMMIT="$(git rev-parse HEAD)" \
#       --build-arg BUILD_COMMIT_DATE="$(git log -1 --format=%cs)" .

# The dependencies are a layer of their own, which stays until they, the profile or Rust change. A layer and not a cache
# mount: CI keeps layers between its runs (--cache-from), and the content of a cache mount stays on the machine that has
# it. Not cargo-chef either: it would be compiled first, in every cold build.
#
# The layer is built from a manifest that is reduced to what dependencies depend on, with an empty src/main.rs and
# src/lib.rs. Every target ([lib], [[bin]], [[test]]…) is left out, so a new one needs no change here; comments, metadata
# and descriptions are left out, so changing them builds nothing again. Cargo.lock knows nothing of either.
FROM rust:1.95-trixie AS manifest
WORKDIR /reduced
COPY Cargo.toml Cargo.lock ./
COPY tests/support/Cargo.toml tests/support/
# What is copied from here is the same if its content is, so it gets the same age.
RUN awk '/^\[/ { left_out = /^\[\[/ || /^\[lib\]/ || /^\[package\.metadata/ } \
        !left_out && !/^(#|$|default-run|description|readme|keywords|categories)/' Cargo.toml >reduced \
    && mv reduced Cargo.toml \
    && mkdir -p src tests/support/src && touch src/lib.rs tests/support/src/lib.rs \
    && echo 'fn main() {}' | tee src/main.rs >build.rs \
    && find . -exec touch --date=@0 {} +

FROM rust:1.95-trixie AS build
WORKDIR /build
COPY --from=manifest /reduced /reduced
RUN cargo build --locked --release --manifest-path /reduced/Cargo.toml --target-dir /build/target

# Everything in the context, and that is little (.dockerignore): no tests, benches and examples. Cargo refuses a manifest
# that names files which do not exist, so they are left out here too; the member tests/support gets an empty library.
# Files keep their age when they are copied, and Cargo would consider what it built from the empty ones newer.
COPY . .
# What `outbox-relay --version` prints besides the version: the commit and its date. Only what follows depends on them.
ARG BUILD_COMMIT
ARG BUILD_COMMIT_DATE
RUN mkdir -p tests/support/src && touch tests/support/src/lib.rs \
    && awk '/^\[/ { left_out = /^\[\[(test|bench|example)\]\]/ } !left_out' Cargo.toml >reduced && mv reduced Cargo.toml \
    && find src build.rs -exec touch {} + && cargo build --locked --release --bin outbox-relay

# Distroless instead of a slim Debian: the relay needs the C library, libgcc and the CA certificates, and there is
# nothing else to patch or misuse: no shell, no package manager. It runs as user 65532 and writes no files, so the root
# file system may be read-only. The same Debian release as above, for the C library.
FROM gcr.io/distroless/cc-debian13:nonroot
COPY --from=build /build/target/release/outbox-relay /usr/local/bin/outbox-relay
EXPOSE 9595
# Whether the relay is alive, not whether its database is: a restart would not help the database.
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s CMD ["outbox-relay", "healthcheck"]
# Without a shell, SIGTERM goes to the relay itself; give it longer than OUTBOX_RELAY_DRAIN_TIMEOUT to stop.
ENTRYPOINT ["outbox-relay"]
CMD ["run"]
# The version is that of Cargo.toml: `make image-check` compares them.
ARG BUILD_VERSION=0.1.0
ARG BUILD_COMMIT
ARG BUILD_SOURCE=""
LABEL org.opencontainers.image.title="outbox-relay" \
      org.opencontainers.image.description="Moves committed events from PostgreSQL to Amazon SQS" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.source="$BUILD_SOURCE" \
      org.opencontainers.image.version="$BUILD_VERSION" \
      org.opencontainers.image.revision="$BUILD_COMMIT"
