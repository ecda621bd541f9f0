#!/bin/sh
# Builds the Dockerfile as it is and runs the image as deploy/kubernetes/sidecar.yaml does, without Docker or a registry.
#
#   tests/tools/image-check.sh    prints a line for each thing that was verified
#
# The base images are made of Debian's packages and this machine's Rust (image/bases.sh). The image runs from its own root
# file system (image/enter.sh), with TLS, against a real PostgreSQL and the SQS emulator. It needs root on Debian. Layers
# stay in target/image for the next run.
#
# STORAGE_DRIVER=vfs or overlay is buildah's; by default the second where it works.
# IMAGE_CHECK_ONLY=build builds and does not run.
set -eu
tools=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$tools/../.." && pwd)
work=${CARGO_TARGET_DIR:-$repository/target}/image
image=localhost/outbox-relay:check
began=$(date +%s)

say() { printf '  %-14s %s\n' "$1" "$2"; }

# fail WHAT [LOG…]: with the last lines of the logs that tell why.
fail() {
    echo "FAILED: $1" >&2
    shift
    for log in "$@"; do
        [ ! -s "$log" ] || { echo "--- the end of $log:" >&2; tail -n 25 "$log" >&2; }
    done
    exit 1
}

# awaited SECONDS COMMAND…: whether the command succeeds within this time.
awaited() {
    until_=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$until_" ] || return 1
        sleep 0.05
    done
}

milliseconds() { echo $(($(date +%s%N) / 1000000)); }

# --- What it needs -------------------------------------------------------------------------------------------------

[ "$(id -u)" = 0 ] || fail "image-check needs root, for file systems and control groups"
packages=
for tool in buildah:buildah debootstrap:debootstrap openssl:openssl curl:curl psql:postgresql-client \
    setpriv:util-linux unshare:util-linux node:nodejs; do
    command -v "${tool%%:*}" >/dev/null || packages="$packages ${tool#*:}"
done
if [ -n "$packages" ]; then
    command -v apt-get >/dev/null || fail "these Debian packages are missing:$packages"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages; } \
        >&2 </dev/null || fail "apt-get could not install$packages"
fi

# Every mount ends with this process and its children, however they end.
[ -n "${IMAGE_CHECK_MOUNTS:-}" ] || IMAGE_CHECK_MOUNTS=own exec unshare --mount sh "$0" "$@"

mkdir -p "$work"
# One at a time: two would take each other's layers away.
exec 9>"$work/lock"
flock -n 9 || fail "another image-check is running in $work"
run=$(mktemp -d)
chmod 755 "$run"
building=
container=
group=
postgres=
relay=
finish() {
    [ -z "$building" ] || { kill "$building" 2>/dev/null && wait "$building"; } || :
    # Not unshare: the relay would outlive it, since the signal that --kill-child arranges ends with the change of user.
    [ -z "$relay" ] || for child in $(cat "/proc/$relay/task/$relay/children" 2>/dev/null); do kill -KILL "$child" 2>/dev/null || :; done
    exec 3>&- 4>&- # The emulator and the TLS server end with their standard input.
    if [ -n "$postgres" ] && kill -INT "$postgres" 2>/dev/null; then wait "$postgres" || :; fi
    [ -z "$container" ] || buildah_ rm "$container" >/dev/null || :
    if [ -n "$group" ]; then
        for left in $(cat "$group/cgroup.procs"); do kill -KILL "$left" 2>/dev/null || :; done
        awaited 5 rmdir "$group" 2>/dev/null || :
    fi
    rm -rf "$run" "$work/context"
}
trap finish EXIT
trap 'exit 1' HUP INT TERM

# Overlays, where the disk can carry them; vfs works everywhere, but copies the whole file system for each step.
overlays() {
    mkdir "$run/lower" "$run/upper" "$run/merged" "$work/upper" "$work/work"
    unshare --mount mount -t overlay overlay -o "lowerdir=$run/lower,upperdir=$work/upper,workdir=$work/work" \
        "$run/merged" 2>/dev/null || return 1
}
if [ -z "${STORAGE_DRIVER:-}" ]; then
    if overlays; then STORAGE_DRIVER=overlay; else STORAGE_DRIVER=vfs; fi
    rm -rf "$work/upper" "$work/work"
fi
unset STORAGE_OPTS
store=$work/$STORAGE_DRIVER
buildah_() { buildah --root "$store" --runroot "$store-run" --storage-driver "$STORAGE_DRIVER" "$@"; }
# What a run that was killed has left.
rm -rf "$store-run"
buildah_ rm --all >/dev/null

# --- The build -----------------------------------------------------------------------------------------------------

have() { buildah_ inspect --type image "$1" >/dev/null 2>&1; }

# Cargo as it is set up here: its configuration (a mirror, a proxy), and the number of jobs.
cargo_settings() {
    [ ! -f "${CARGO_HOME:-$HOME/.cargo}/config.toml" ] || cat "${CARGO_HOME:-$HOME/.cargo}/config.toml"
    [ -z "${CARGO_BUILD_JOBS:-}" ] || printf '\n[build]\njobs = %s\n' "$CARGO_BUILD_JOBS"
}

bases() {
    # A base is what the name stands for and what it is made of: another Rust or mirror makes a new one.
    rust=$(sed -n 's/^FROM \(rust:[^ ]*\).*/\1/p' "$repository/Dockerfile" | head -n 1)
    distroless=$(sed -n 's/^FROM \(gcr.io[^ ]*\).*/\1/p' "$repository/Dockerfile")
    release=$(echo "$rust" | sed 's/.*-//')
    version=$(rustc --version | cut -d ' ' -f 2)
    case "$version" in "$(echo "$rust" | sed 's/rust:\(.*\)-.*/\1/')"*) ;;
    *) say "note" "the Dockerfile names $rust, and this machine's Rust is $version" ;;
    esac
    made_of=$(rustc -vV; sh "$tools/image/bases.sh" mirror; cat "$tools/image/bases.sh")
    if ! have "docker.io/library/$rust" || ! have "$distroless" || [ "$made_of" != "$(cat "$store/made-of" 2>/dev/null)" ]; then
        rm -f "$store/made-of"
        base builder "docker.io/library/$rust"
        base minimal "$distroless"
        echo "$made_of" >"$store/made-of"
        say bases "made from Debian $release and Rust $version"
    else
        say bases "kept from the last run: Debian $release and Rust $version"
    fi
}

base() {
    WORK=$work STORE=$store STORAGE_DRIVER=$STORAGE_DRIVER sh "$tools/image/bases.sh" "$1" "$2" "$release" \
        >"$work/bases.log" 2>&1 9>&- || fail "the base image $2 cannot be made" "$work/bases.log"
}

# build LOG CONTEXT ARGUMENT…; Docker's format, since OCI's has no health check. Cargo's settings are mounted: as a part of
# the base they would build everything anew.
build() {
    log=$1
    context=$2
    shift 2
    timeout 1800 buildah --root "$store" --runroot "$store-run" --storage-driver "$STORAGE_DRIVER" build --format docker \
        --isolation chroot --network host --pull-never --volume "$work/cargo.toml:/usr/local/cargo/config.toml:ro" \
        "$@" "$context" >"$log" 2>&1 9>&- &
    building=$!
    code=0
    wait "$building" || code=$? # A signal to this script ends the wait.
    building=
    return "$code"
}

# What the Dockerfile may use, in a folder where it can be changed.
context() {
    rm -rf "$work/context"
    mkdir "$work/context"
    (cd "$repository" && cp -a --parents Dockerfile .dockerignore Cargo.toml Cargo.lock tests/support/Cargo.toml src sql \
        "$work/context" && { [ ! -f build.rs ] || cp -a build.rs "$work/context"; })
}

compiled() { grep -cE "^ +Compiling $1" "$2" || :; }

build_image() {
    version=$(sed -n '/^\[package\]/,/^\[[a-z]*\]$/s/^version = "\(.*\)"/\1/p' "$repository/Cargo.toml")
    commit=${BUILD_COMMIT:-$(git -C "$repository" rev-parse HEAD 2>/dev/null || echo unknown)}
    date=$(git -C "$repository" log -1 --format=%cs 2>/dev/null || echo 1970-01-01)
    set -- --layers --build-arg BUILD_COMMIT="$commit" --build-arg BUILD_COMMIT_DATE="$date"
    start=$(date +%s)
    build "$work/build.log" "$repository" "$@" -t "$image" || fail "the image does not build" "$work/build.log"
    size=$(buildah_ images --format '{{.Size}}' "$image")
    # The last step builds on the layer of the dependencies: whatever it compiles besides the relay, a change in src would
    # compile again. (Nothing is compiled where all layers are kept from the last run.)
    again=$(sed -n '/STEP [0-9/]*: COPY \. \./,$p' "$work/build.log" | grep -E '^ +(Compiling|Downloaded|Downloading) ' || :)
    others=$(echo "$again" | grep -vE '^$|^ +Compiling [^ ]+ v[^ ]+ \(/build\)$' || :)
    [ -z "$others" ] || fail "a change in src would build more than the relay: $others" "$work/build.log"
    say build "$size, $(($(date +%s) - start)) s, $(compiled '' "$work/build.log") crates compiled, on the dependencies' layer: ${again:-none}"
}

# Removes the layers that are not in `known`: they are of no use to the next run.
forget_new() {
    for id in $(buildah_ images --all --quiet --no-trunc); do
        echo "$known" | grep -qx "$id" || buildah_ rmi --force "$id" >/dev/null 2>&1 || :
    done
}

# A change in src, and a manifest with more targets, whose files are not in the context: the dependencies' layer stays, and
# the next step builds the relay. Instead of building, Cargo only looks at the manifest: it refuses one that names a target
# without a file.
changes() {
    known=$(buildah_ images --all --quiet --no-trunc)
    context
    for kind in bench example test; do
        printf '\n[[%s]]\nname = "image-check-%s"\n\n[[%s]]\nname = "image-check-%s-path"\npath = "elsewhere/%s.rs"\n' \
            $kind $kind $kind $kind $kind
    done >>"$work/context/Cargo.toml"
    printf '\n[[bin]]\nname = "image-check-bin"\npath = "src/image_check.rs"\n' >>"$work/context/Cargo.toml"
    echo 'fn main() {}' >"$work/context/src/image_check.rs"
    echo "// $(date +%s%N)" >>"$work/context/src/lib.rs"
    printf '#!/bin/sh\necho "cargo $*"\nexec /usr/local/rust/bin/real-cargo metadata --no-deps --offline --format-version 1 >/dev/null\n' \
        >"$work/looking-cargo"
    chmod 755 "$work/looking-cargo"
    build "$work/changes.log" "$work/context" --layers --target build \
        --volume "$work/looking-cargo:/usr/local/rust/bin/cargo:ro" \
        --volume "$(rustc --print sysroot)/bin/cargo:/usr/local/rust/bin/real-cargo:ro" ||
        fail "a change in src and more targets do not build" "$work/changes.log"
    forget_new
    [ "$(grep '^cargo build' "$work/changes.log")" = "cargo build --locked --release --bin outbox-relay" ] ||
        fail "a change in src or a new target builds the dependencies again" "$work/changes.log"
    say changes "in src, and a new bench, example, test and program in Cargo.toml: only the relay is built again"
}

# --- What it runs against ------------------------------------------------------------------------------------------

free_port() { node -e 's=require("net").createServer().listen(0,"127.0.0.1",()=>{console.log(s.address().port);s.close()})'; }

# An authority of this run's own, and a certificate for localhost.
certificates() {
    (
        cd "$run"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "/CN=image-check" \
            -keyout ca.key -out ca.pem
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=localhost" -keyout key.pem -out server.csr
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' >names
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.pem
    ) >"$run/openssl.log" 2>&1 || fail "openssl made no certificates" "$run/openssl.log"
}

database() {
    bin=$(sh "$tools/postgres.sh")
    port=$(free_port)
    # PostgreSQL does not run as root.
    install -d -o nobody "$run/postgres"
    install -o nobody -m 600 "$run/key.pem" "$run/postgres.key"
    as_nobody="setpriv --reuid=nobody --regid=nogroup --clear-groups"
    (cd / && $as_nobody "$bin/initdb" -D "$run/postgres/data" -A trust -U relay -E UTF8 --locale=C) >"$run/postgres.log" 2>&1 ||
        fail "initdb failed" "$run/postgres.log"
    (cd / && exec $as_nobody "$bin/postgres" -D "$run/postgres/data" -p "$port" -k "$run/postgres" \
        -c listen_addresses=127.0.0.1 -c ssl=on -c ssl_cert_file="$run/server.pem" \
        -c ssl_key_file="$run/postgres.key") >>"$run/postgres.log" 2>&1 3>&- 9>&- &
    postgres=$!
    awaited 30 query 'SELECT 1' >/dev/null 2>&1 || fail "PostgreSQL ($bin) does not start with TLS" "$run/postgres.log"
}
query() { psql -XqAt -h "$run/postgres" -p "$port" -U relay -d postgres -c "$1"; }

queues() {
    cli=$(sh "$tools/emulator.sh")
    mkfifo "$run/leash" "$run/leash2"
    node "$tools/emulator/serve.mjs" "$cli" <"$run/leash" >"$run/sqs" 2>"$run/sqs.log" 9>&- &
    exec 3>"$run/leash"
    awaited 30 test -s "$run/sqs" || fail "the SQS emulator does not start" "$run/sqs.log"
    sqs=$(cat "$run/sqs")
    node "$tools/image/tls.mjs" "$run/server.pem" "$run/key.pem" "${sqs##*:}" <"$run/leash2" >"$run/tls" 2>"$run/tls.log" 3>&- 9>&- &
    exec 4>"$run/leash2"
    awaited 30 test -s "$run/tls" || fail "the TLS server does not start" "$run/tls.log"
    secure=https://localhost:$(cat "$run/tls")
    ask CreateQueue '{"QueueName":"audit"}' >/dev/null
    ask CreateQueue '{"QueueName":"tickets.fifo","Attributes":{"FifoQueue":"true"}}' >/dev/null
}
ask() {
    curl -fsS --max-time 20 "$sqs" -H 'content-type: application/x-amz-json-1.0' -H "x-amz-target: AmazonSQS.$1" -d "$2" \
        -H 'authorization: AWS4-HMAC-SHA256 Credential=demo/20260101/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=x'
}
waiting() {
    ask GetQueueAttributes "{\"QueueUrl\":\"$sqs/000000000000/$1\",\"AttributeNames\":[\"All\"]}" |
        sed -n 's/.*"ApproximateNumberOfMessages":"\([0-9]*\)".*/\1/p'
}

# --- The container -------------------------------------------------------------------------------------------------

# Bytes of the sidecar's limit.
memory_limit() {
    quantity=$(sed -n '/limits:/,/volumeMounts/s/^ *memory: *//p' "$repository/deploy/kubernetes/sidecar.yaml" | head -n 1)
    case $quantity in
    *Mi) echo $((${quantity%Mi} * 1024 * 1024)) ;;
    *Gi) echo $((${quantity%Gi} * 1024 * 1024 * 1024)) ;;
    *) fail "deploy/kubernetes/sidecar.yaml has no memory limit in Mi or Gi: $quantity" ;;
    esac
}

# A control group with the limit below that of this process, or nothing if none may be made.
control_group() {
    while IFS=: read -r _ controllers path; do
        case ",$controllers," in
        ,,) mount=/sys/fs/cgroup file=memory.max ;;
        *,memory,*) mount=/sys/fs/cgroup/memory file=memory.limit_in_bytes ;;
        *) continue ;;
        esac
        candidate=${mount}${path%/}/outbox-relay-image-$$
        mkdir "$candidate" 2>/dev/null || continue
        if echo "$limit" 2>/dev/null >"$candidate/$file"; then
            group=$candidate
            return
        fi
        rmdir "$candidate"
    done </proc/self/cgroup
}

# What a container runtime sets up before it starts the image.
container() {
    eval "$(buildah_ inspect --type image "$image" | node "$tools/image/config.mjs")"
    case $image_user in
    '' | 0 | 0:* | *[!0-9:]*) fail "the image's user is '$image_user': Kubernetes verifies only a number that it is not root" ;;
    *:*) ;;
    *) image_user=$image_user:$image_user ;;
    esac
    container=$(buildah_ from --pull-never "$image")
    root=$(buildah_ mount "$container")
    mkdir -p "$root/proc" "$root/dev" "$root/sys" "$root/tmp"
    printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
    limit=$(memory_limit)
    control_group
    mkdir "$run/setup"
    http=$(free_port)
    echo "$group" >"$run/setup/group"
    echo "$image_user" >"$run/setup/user"
    echo "$image_folder" >"$run/setup/folder"
    # The emulator knows its queues by its own address; the requests go to the endpoint with TLS.
    cat >"$run/setup/environment" <<END
DATABASE_URL=postgres://relay@localhost:$port/postgres?sslmode=verify-full
OUTBOX_RELAY_DESTINATIONS=tickets=$sqs/000000000000/tickets.fifo,audit=$sqs/000000000000/audit
OUTBOX_RELAY_HTTP_LISTEN=127.0.0.1:$http
AWS_ENDPOINT_URL_SQS=$secure
AWS_REGION=us-east-1
AWS_ACCESS_KEY_ID=demo
AWS_SECRET_ACCESS_KEY=demo
$image_environment
END
    [ -n "$group" ] || echo "OUTBOX_RELAY_MEMORY=$((limit / 1024 / 1024))MiB" >>"$run/setup/environment"
}

# image LOG COMMAND…: a command in the container, for at most a minute.
image() {
    log=$run/$1.log
    shift
    timeout -s KILL 60 unshare --mount --pid --fork --kill-child -- \
        sh "$tools/image/enter.sh" "$root" "$run/setup" "$@" >"$log" 2>&1 3>&- 4>&- 9>&-
}
# relay LOG ARGUMENT…: the same with the image's entrypoint.
relay() {
    name=$1
    shift
    eval "set -- $image_entrypoint \"\$@\""
    image "$name" "$@"
}

# Starts the image as it starts itself; `relay` is the process of unshare, `pid` its child: the relay.
start_relay() {
    eval "set -- $image_entrypoint $image_command"
    unshare --mount --pid --fork --kill-child -- \
        sh "$tools/image/enter.sh" "$root" "$run/setup" "$@" >"$run/run.log" 2>&1 3>&- 4>&- 9>&- &
    relay=$!
    started=$(milliseconds)
    awaited 30 ready || fail "the relay is not ready after 30 s" "$run/run.log" "$run/postgres.log"
    say ready "after $(($(milliseconds) - started)) ms"
    pid=$(tr -d ' ' <"/proc/$relay/task/$relay/children")
}
ready() { curl -fs --max-time 5 -o /dev/null "http://127.0.0.1:$http/readyz"; }

# --- What is verified ----------------------------------------------------------------------------------------------

labels() {
    relay version --version || fail "--version fails" "$run/version.log"
    printed=$(cat "$run/version.log")
    expected="outbox-relay $version ($(echo "$commit" | cut -c 1-9) $date)"
    [ "$printed" = "$expected" ] || fail "--version prints '$printed', not '$expected'"
    for label in title="outbox-relay" version="$version" revision="$commit" \
        licenses="$(sed -n 's/^license = "\(.*\)"/\1/p' "$repository/Cargo.toml")"; do
        echo "$image_labels" | grep -qxF "org.opencontainers.image.$label" ||
            fail "the image has no label org.opencontainers.image.$label, but: $image_labels"
    done
    # buildah keeps a label's layer when only the default of an argument changes.
    grep -qx "ARG BUILD_VERSION=$version" "$repository/Dockerfile" || fail "BUILD_VERSION in the Dockerfile is not $version, as in Cargo.toml"
    echo "$image_labels" | grep -q '^org.opencontainers.image.description=.' || fail "the image has no description"
    say labels "$(echo "$image_labels" | grep -c '^org.opencontainers.image\.') of org.opencontainers.image; --version prints $printed"
}

unknown_authority() {
    if relay unknown check; then fail "it trusts a certificate of an unknown authority" "$run/unknown.log"; fi
    for peer in "localhost:$port" "${secure#https://}"; do
        grep -F "TLS of $peer" "$run/unknown.log" | grep '^✗' | grep -qiE 'unknown ?issuer' ||
            fail "check does not refuse the certificate of $peer" "$run/unknown.log"
    done
    say "TLS, unknown" "PostgreSQL and the queues are refused while their authority is not in the image's bundle"
    cat "$run/ca.pem" >>"$root/etc/ssl/certs/ca-certificates.crt"
}

prepare() {
    relay migrate migrate || fail "migrate fails" "$run/migrate.log" "$run/postgres.log"
    relay check check || fail "check fails" "$run/check.log"
    for peer in "localhost:$port" "${secure#https://}"; do
        grep -F "TLS of $peer: TLS 1.3, " "$run/check.log" | grep -q 'issued by CN=image-check' ||
            fail "check does not say that $peer was reached with TLS" "$run/check.log"
    done
    say "TLS, known" "migrate and check pass with sslmode=verify-full and https, the authority added to the copy's bundle"
}

confined() {
    for set in CapEff CapPrm CapBnd CapAmb; do
        grep -qE "^$set:\s+0+$" "/proc/$pid/status" || fail "the relay has capabilities: $(grep "^$set:" "/proc/$pid/status")"
    done
    grep -qE '^NoNewPrivs:\s+1$' "/proc/$pid/status" || fail "the relay may get privileges"
    grep -qE "^Uid:(\s+${image_user%:*}){4}$" "/proc/$pid/status" || fail "the relay does not run as ${image_user%:*}"
    awk '$5 == "/" && $6 ~ /^ro/ { found = 1 } END { exit !found }' "/proc/$pid/mountinfo" || fail "its root is not read-only"
    say confined "user $image_user, read-only root, no capabilities, no_new_privs, process 1 of its namespace"
}

# enqueue DESTINATION GROUPS COUNT
enqueue() {
    query "SELECT count(outbox.enqueue('$1', 'Made', jsonb_build_object('n', n), group_id => 'g' || n % $2))
           FROM generate_series(1, $3) n" >/dev/null
}
delivered() { query "SELECT count(*) FROM outbox.messages WHERE status = 'delivered'"; }
delivered_are() { [ "$(delivered)" -ge "$1" ]; }
delivered_or_ended() { delivered_are "$1" || ! kill -0 "$pid" 2>/dev/null; }

# hold AUDIT TICKETS: the queues hold exactly as many; each message was sent once.
hold() {
    [ "$(waiting audit) $(waiting tickets.fifo)" = "$1 $2" ] ||
        fail "the queues hold $(waiting audit) and $(waiting tickets.fifo) messages, not $1 and $2" "$run/run.log"
}

deliver() {
    enqueue audit 50 5000
    enqueue tickets 50 5000
    awaited 120 delivered_or_ended 10000 && delivered_are 10000 || fail "$(delivered) of 10,000 messages are delivered after 2 minutes" "$run/run.log"
    hold 5000 5000
    say delivered "5,000 to a FIFO queue and 5,000 to a standard queue: the queues hold each once"
}

health() {
    eval "set -- $image_health"
    [ $# -gt 0 ] || fail "the image has no health check that works without a shell"
    image health "$@" || fail "the health check fails beside a relay that works" "$run/health.log"
}
no_health() {
    eval "set -- $image_health"
    if image health "$@"; then fail "the health check passes without a relay" "$run/health.log"; fi
    say healthcheck "passes beside a relay that works, and fails without one"
}

stop_in_the_middle() {
    enqueue audit 50 10000
    enqueue tickets 50 10000
    awaited 60 delivered_or_ended 10001 && delivered_are 10001 || fail "the relay delivers no more" "$run/run.log"
    peak=$(sed -n 's/^VmHWM:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$pid/status")
    stopping=$(milliseconds)
    kill -TERM "$pid"
    awaited 30 stopped || fail "the relay runs 30 s after SIGTERM" "$run/run.log"
    stopping=$(($(milliseconds) - stopping))
    code=0
    wait "$relay" || code=$?
    relay=
    [ "$code" = 0 ] || fail "exit code $code after SIGTERM" "$run/run.log"
    sent=$(delivered)
    [ "$sent" -lt 30000 ] || fail "SIGTERM came after the work: make it more"
    [ "$(($(waiting audit) + $(waiting tickets.fifo)))" = "$sent" ] ||
        fail "the queues hold $(waiting audit) and $(waiting tickets.fifo) messages, the database says $sent" "$run/run.log"
    if grep -E ' (WARN|ERROR) ' "$run/run.log" >"$run/warnings.log"; then fail "the relay warns" "$run/warnings.log"; fi
    say stopped "SIGTERM after $sent of 30,000: exit code 0 after $stopping ms, as many in the queues as recorded"
}
stopped() { ! kill -0 "$relay" 2>/dev/null || grep -q '^State:.*Z' "/proc/$relay/status"; }

memory() {
    [ "$((peak * 1024))" -le "$limit" ] || fail "the relay used $peak kB, the sidecar's limit is $limit bytes"
    if [ -n "$group" ]; then
        how="in a control group with that limit"
    else
        how="no control group may be made here, so only compared"
    fi
    say memory "$((peak / 1024)) MiB at the peak (VmHWM) of the sidecar's $((limit / 1024 / 1024)) MiB; $how"
}

the_rest() {
    relay rest run --until-empty || fail "run --until-empty fails" "$run/rest.log"
    hold 15000 15000
    say "the rest" "run --until-empty: 30,000 messages in all, none lost, none doubled"
}

echo "the image"
cargo_settings >"$work/cargo.toml"
bases
build_image
changes
[ "${IMAGE_CHECK_ONLY:-}" != build ] || exit 0
certificates
database
queues
container
labels
unknown_authority
prepare
start_relay
confined
deliver
health
stop_in_the_middle
memory
no_health
the_rest
echo "PASSED in $(($(date +%s) - began)) s"
