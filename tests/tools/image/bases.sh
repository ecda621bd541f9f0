#!/bin/sh
# Makes a base image that the Dockerfile names, where no registry can be reached.
#
#   bases.sh builder NAME RELEASE    Debian with a C compiler, this machine's Rust and the certificates that it trusts
#   bases.sh minimal NAME RELEASE    the C library, libgcc, certificates and time zones, a user 65532, no program at all
#   bases.sh mirror                  prints Debian's mirror, as far as this machine's sources name one
#
# WORK is a folder for temporary files; STORE and STORAGE_DRIVER are buildah's.
#
# They are Debian's packages and this machine's Rust, and stand in for rust:… and for distroless. The second holds less than
# distroless does, so an image that runs on it needs nothing that distroless lacks.

set -eu

buildah_() { buildah --root "$STORE" --runroot "$STORE-run" --storage-driver "$STORAGE_DRIVER" "$@"; }

# The mirror that this machine uses, or nothing: debootstrap then uses its own default.
debian_mirror() {
    grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null |
        head -n 1 | tr -d ' '
}

# retried COMMAND…: downloads fail now and then.
retried() {
    for pause in 5 20 0; do
        if "$@"; then return; fi
        echo "failed: $*" >&2
        sleep "$pause"
    done
    return 1
}

# Fills the folder $1 with Debian $2 and the packages $3.
bootstrap() {
    rm -rf "$1"
    timeout 600 debootstrap --variant=minbase --include="$3" "$2" "$1" ${DEBIAN_MIRROR:-$(debian_mirror)}
}

# The empty container whose files become the image.
begin() {
    container=$(buildah_ from scratch)
    trap 'buildah_ rm "$container" >/dev/null 2>&1; rm -rf "$WORK/base"' EXIT
    trap 'exit 1' HUP INT TERM
    root=$(buildah_ mount "$container")
    [ -d "${root:?}" ]
}

builder_image() {
    begin
    retried bootstrap "$WORK/base" "$2" gcc,libc6-dev,ca-certificates
    rm -rf "$WORK/base/var/cache/apt" "$WORK/base/var/lib/apt/lists" "$WORK/base/usr/share/doc"
    cp -a "$WORK/base/." "$root/"
    rm -rf "$WORK/base"
    # Without the documentation and the other targets: they are half of it.
    sysroot=$(rustc --print sysroot)
    host=$(rustc -vV | sed -n 's/^host: //p')
    mkdir -p "$root/usr/local/rust/bin" "$root/usr/local/rust/lib/rustlib" "$root/usr/local/cargo"
    cp -a "$sysroot/bin/rustc" "$sysroot/bin/cargo" "$root/usr/local/rust/bin/"
    for library in "$sysroot"/lib/*.so*; do cp -a "$library" "$root/usr/local/rust/lib/"; done
    cp -a "$sysroot/lib/rustlib/$host" "$root/usr/local/rust/lib/rustlib/"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    : >"$root/usr/local/cargo/config.toml" # Builds mount this machine's settings over it.
    buildah_ config \
        --env PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        --env CARGO_HOME=/usr/local/cargo "$container"
    buildah_ commit --quiet "$container" "$1"
}

minimal_image() {
    begin
    retried bootstrap "$WORK/base" "$2" ca-certificates,netbase,tzdata
    mkdir "$WORK/base/debs"
    cp /etc/resolv.conf "$WORK/base/etc/"
    retried chroot "$WORK/base" sh -c \
        'cd /debs && apt-get -q -o APT::Sandbox::User=root download base-files netbase tzdata libc6 libgcc-s1 ca-certificates'
    for package in "$WORK"/base/debs/*.deb; do dpkg-deb -x "$package" "$root"; done
    rm -rf "$WORK/base"
    cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
    rm -rf "${root:?}"/usr/share/doc "$root"/usr/share/man "$root"/usr/share/info "$root"/usr/share/lintian \
        "${root:?}"/usr/bin/* "${root:?}"/usr/sbin/*
    printf '%s\n' root:x:0:0:root:/root:/sbin/nologin nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin >"$root/etc/passwd"
    printf '%s\n' root:x:0: nonroot:x:65532: >"$root/etc/group"
    echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
    install -d -m 700 -o 65532 -g 65532 "$root/home/nonroot"
    # As distroless sets them.
    buildah_ config --user 65532 --workingdir /home/nonroot \
        --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        --env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt "$container"
    buildah_ commit --quiet "$container" "$1"
}

case ${1:-} in
builder) builder_image "$2" "$3" ;;
minimal) minimal_image "$2" "$3" ;;
mirror) debian_mirror ;;
*) echo "no such image: ${1:-none} (builder, minimal)" >&2; exit 1 ;;
esac
