#!/bin/sh
# Applies the faults of tests/mutants/*.patch to the core, one at a time, and checks that the property tests find each
# within a minute. `mutants.sh NAME...` applies only the patches with these names. `mutants.sh --check` only checks that
# all patches still apply.
set -eu
cd "$(dirname "$0")/../.."
SECONDS_EACH="${SECONDS_EACH:-60}"
SEED="${SEED:-5}"

fail() {
    echo "$1" >&2
    exit 1
}

if [ "${1:-}" = --check ]; then
    for patch in tests/mutants/*.patch; do
        patch --dry-run --silent --force --strip=1 --fuzz=2 <"$patch" >/dev/null ||
            fail "$patch no longer applies; write the same fault for the current code"
    done
    exit 0
fi

work="$PWD/target/mutants-work"
target="$PWD/target"
log="$work.log"
mkdir -p "$work"
missed=0
for name in "$@"; do
    [ -f "tests/mutants/$name.patch" ] || fail "there is no tests/mutants/$name.patch"
done

# Builds a copy with this patch, or without one if it is empty, and runs the properties; `found` is the one that failed.
run() {
    git ls-files -z | xargs -0 cp --parents --preserve=timestamps -t "$work"
    if [ -n "$1" ]; then
        patch --silent --strip=1 --fuzz=2 --directory="$work" <"$1"
    fi
    # The copies have the ages of the originals, so a build could take a patched or restored file for unchanged.
    touch "$work/src/lib.rs"
    binary="$(cd "$work" && CARGO_TARGET_DIR="$target" cargo test --profile mutants --locked --lib --no-run 2>&1 |
        tee "$log" | sed -n 's/.*src\/lib.rs (\(.*\))$/\1/p')"
    [ -n "$binary" ] || fail "${1:-the core} does not build: see $log"
    began="$(date +%s)"
    PROPTEST_CASES=100000000 PROPTEST_RNG_SEED="$SEED" PROPTEST_MAX_SHRINK_ITERS=0 RUST_TEST_THREADS=8 RUST_BACKTRACE=0 \
        timeout "$SECONDS_EACH" "$target/${binary#"$target"/}" core::properties >"$log" 2>&1 &
    runner=$!
    found=''
    while [ -z "$found" ] && kill -0 "$runner" 2>/dev/null; do
        sleep 0.2
        found="$(sed -n 's/^test relay::core::properties::\(.*\) \.\.\. FAILED$/\1/p' "$log" | head -n 1)"
    done
    kill "$runner" 2>/dev/null || true
    wait "$runner" 2>/dev/null || true
}

run ''
[ -z "$found" ] || fail "$found fails without any fault: see $log"
for patch in tests/mutants/*.patch; do
    name="$(basename "$patch" .patch)"
    case " ${*:-$name} " in *" $name "*) ;; *) continue ;; esac
    run "$patch"
    if [ -n "$found" ]; then
        printf '%-28s found in %3d s: %s\n' "$name" "$(($(date +%s) - began))" "$found"
    else
        printf '%-28s NOT FOUND in %s s\n' "$name" "$SECONDS_EACH"
        missed=$((missed + 1))
    fi
done
[ "$missed" -eq 0 ] || fail "$missed faults were not found"
