# What is made from the sources besides the packages: the list of crates, the crate itself, the program for arm64; sourced by
# ../package-check.sh.

host=$(rustc -vV | sed -n 's/^host: //p')

check_sbom() {
    start=$(date +%s)
    bin=$(sh "$tools/cargo-tool.sh" cargo-cyclonedx)
    source_copy "$run/sbom"
    # It writes beside each manifest, so it works in a copy.
    (cd "$run/sbom" && logged sbom "$bin/cargo-cyclonedx" cyclonedx --format json --spec-version 1.5 --target "$host" \
        --override-filename bom)
    # By Cargo itself: what the program is made of and built with, without development.
    cargo tree --locked --edges normal,build --target "$host" --prefix none --format '{p}' | cut -d ' ' -f 1,2 | sort -u >"$run/tree"
    node -e '
        const bom = JSON.parse(require("fs").readFileSync(process.argv[1], "utf8"));
        if (bom.bomFormat !== "CycloneDX" || bom.specVersion !== "1.5") throw new Error("not a list of CycloneDX 1.5");
        const names = [bom.metadata.component, ...bom.components].map(({ name, version }) => `${name} v${version}`);
        console.log([...new Set(names)].sort().join("\n"));
    ' "$run/sbom/bom.json" 2>"$work/bom.log" >"$run/listed" || fail "the list of crates is no CycloneDX" "$work/bom.log"
    LC_ALL=C sort -o "$run/tree" "$run/tree"
    LC_ALL=C sort -o "$run/listed" "$run/listed"
    missing=$(LC_ALL=C comm -23 "$run/tree" "$run/listed")
    [ -z "$missing" ] || fail "the list of crates lacks: $missing"
    # It also lists some that the features of the program leave out, because it reads Cargo's resolution for the workspace.
    sed -n '/^name = /{s/name = "\(.*\)"/\1/;N;s/\nversion = "\(.*\)"/ v\1/p}' Cargo.lock | LC_ALL=C sort >"$run/locked"
    unknown=$(LC_ALL=C comm -13 "$run/locked" "$run/listed")
    [ -z "$unknown" ] || fail "the list of crates names what is not in Cargo.lock: $unknown"
    cp "$run/sbom/bom.json" "$packages/outbox-relay-$version.cdx.json"
    (cd "$packages" && sha256sum -- *.deb *.rpm *.json >SHA256SUMS)
    say sbom "CycloneDX 1.5, $(wc -l <"$run/listed") crates: all $(wc -l <"$run/tree") of 'cargo tree', in $(took "$start")"
}

# source_copy FOLDER: the files of the repository.
source_copy() {
    mkdir "$1"
    git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --preserve=timestamps -t "$1" 2>/dev/null || :
    [ -s "$1/Cargo.toml" ] || fail "the sources could not be copied"
}

check_crate() {
    start=$(date +%s)
    rm -rf target/package
    logged crate cargo package --locked --allow-dirty --no-verify
    crate=$(ls target/package/*.crate)
    mkdir "$run/crate"
    tar -C "$run/crate" -xzf "$crate"
    unpacked=$(ls -d "$run"/crate/*)
    for file in Cargo.lock build.rs README.md LICENSE-MIT LICENSE-APACHE src/main.rs sql/migrations/0001_events.sql; do
        [ -e "$unpacked/$file" ] || fail "the crate has no $file"
    done
    # What was packed is built and installed, with the dependencies that `make build` has built already.
    CARGO_TARGET_DIR=$repository/target logged install cargo install --locked --path "$unpacked" --root "$run/installed"
    "$run/installed/bin/outbox-relay" --version | grep -q "^outbox-relay $version" || fail "the installed program prints no version"
    others=$(grep -E '^ +Compiling ' "$work/install.log" | grep -cv "($unpacked)" || :)
    say crate "$(basename "$crate"), $(tar -tzf "$crate" | wc -l) files, $(($(stat -c %s "$crate") / 1024)) KiB; cargo install builds it in $(took "$start"), with $others other crates"
}

check_arm64() {
    case $host in
    x86_64-unknown-linux-gnu) target=aarch64-unknown-linux-gnu gnu=aarch64-linux-gnu debian=arm64 emulator=qemu-aarch64-static ;;
    *) say arm64 "not run: this machine is $host"; return ;;
    esac
    needed=
    command -v "$gnu-gcc" >/dev/null || needed="gcc-$gnu libc6-dev-$debian-cross"
    command -v "$emulator" >/dev/null || needed="$needed qemu-user-static"
    [ -z "$needed" ] || install_debian $needed
    rustc --print target-libdir --target "$target" | xargs test -d || logged rustup rustup target add "$target"

    start=$(date +%s)
    # Neither optimised nor with debug information: what matters is that it compiles, links and starts.
    variable=$(echo "$target" | tr a-z- A-Z_)
    logged arm64 env "CARGO_TARGET_${variable}_LINKER=$gnu-gcc" "CC_$(echo "$target" | tr - _)=$gnu-gcc" CARGO_PROFILE_DEV_DEBUG=0 \
        cargo build --locked --target "$target" --bin outbox-relay
    program=${CARGO_TARGET_DIR:-$repository/target}/$target/debug/outbox-relay
    file "$program" | grep -q 'ARM aarch64' || fail "it is no program for arm64: $(file "$program")"
    emulated=$("$emulator" -L "/usr/$gnu" "$program" --version) || fail "the program for arm64 does not start"
    echo "$emulated" | grep -q "^outbox-relay $version" || fail "the program for arm64 prints $emulated"
    "$emulator" -L "/usr/$gnu" "$program" migrate --print >"$run/emulated" || fail "the program for arm64 prints no migrations"
    target/release/outbox-relay migrate --print | cmp -s - "$run/emulated" || fail "the program for arm64 prints other migrations"
    say arm64 "built in $(took "$start") and run by $emulator: --version, migrate --print"
}
