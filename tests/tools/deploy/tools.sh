#!/bin/sh
# Installs the checkers of deploy/ and prints the folder that holds them. Everything is pinned: Python packages by
# requirements.txt, our own Go programs by checkers/go.mod, the rest by the versions below.
#
#   bin/      actionlint, compose, dashboard, helm, shellcheck
#   python/   a virtual environment: python/bin/python -m NAME
#   crd/      podmonitors.yaml, the CustomResourceDefinition of the Prometheus Operator
#   versions  lines NAME VERSION
#
# The folder is built under another name and then renamed in one step, as in npm.sh.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../../.." && pwd)
. "$here/../npm.sh"

HELM=v3.22.0
ACTIONLINT=v1.7.12
PROMETHEUS_OPERATOR=v0.85.0

# A registry that does not answer is asked again.
again() {
    for pause in 2 10; do
        timeout 900 "$@" >&2 && return
        sleep "$pause"
    done
    timeout 900 "$@" >&2
}

named="deploy-$(cat "$0" "$here/requirements.txt" "$here"/checkers/go.* "$here"/checkers/*/*.go | cksum | cut -d ' ' -f 1)"
if installed=$(find_tools "$named"); then
    echo "$installed"
    exit
fi
[ -n "$installed" ] || fail "no folder to install into can be written; set CARGO_TARGET_DIR to one that can"
command -v python3 >/dev/null ||
    fail "python3 is missing: cfn-lint and others come from PyPI; install Python >= 3.11"
python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "python3 has no venv, or is older than 3.11; install it, for example by: apt-get install python3-venv"
command -v go >/dev/null || fail "go is missing: helm and others are Go modules; install Go >= 1.26 (https://go.dev)"
go_minor=$(go env GOVERSION | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
[ "${go_minor:-0}" -ge 26 ] ||
    fail "helm $HELM needs Go >= 1.26, but $(command -v go) is $(go env GOVERSION); install a newer one"

tools=$installed
installed="$tools/$named"
building="$tools/.deploy.$$"
trap 'rm -rf "$building"' EXIT
trap 'exit 1' HUP INT TERM
rm -rf "$building"
mkdir -p "$building/bin" "$building/crd"
echo "installing the checkers of deploy/ into $installed" >&2

python3 -m venv --copies "$building/python"
again "$building/python/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --requirement "$here/requirements.txt" || fail "pip could not install requirements.txt (its words are above)"
cp "$building/python/bin/shellcheck" "$building/bin/"

# Symbols for a debugger are left out, which saves time.
export GOBIN="$building/bin" GOFLAGS=-buildvcs=false
again go install -ldflags='-s -w' "github.com/rhysd/actionlint/cmd/actionlint@$ACTIONLINT" ||
    fail "go could not install actionlint"
# As its own Makefile: the release of Kubernetes that it assumes where no cluster says it (that of its k8s.io modules).
flags="-s -w"
for part in chartutil lint/rules; do
    flags="$flags -X helm.sh/helm/v3/pkg/$part.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/$part.k8sVersionMinor=37"
done
again go install -ldflags="$flags" "helm.sh/helm/v3/cmd/helm@$HELM" || fail "go could not install helm"
(cd "$here/checkers" && again go build -o "$building/bin/" ./...) || fail "go could not build $here/checkers"

# The module is only unpacked: its folder of examples has the definition.
operator=$(again go mod download "github.com/prometheus-operator/prometheus-operator@$PROMETHEUS_OPERATOR" &&
    go mod download -json "github.com/prometheus-operator/prometheus-operator@$PROMETHEUS_OPERATOR" |
    sed -n 's/^\t"Dir": "\(.*\)",$/\1/p') || fail "go could not download prometheus-operator"
cp "$operator/example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml" "$building/crd/podmonitors.yaml"
chmod u+w "$building/crd/podmonitors.yaml"

{
    sed -n 's/^\([a-z].*\)==\(.*\)$/\1 \2/p' "$here/requirements.txt"
    (cd "$here/checkers" && go list -m -f '{{.Path}} {{.Version}}' all) |
        sed -n 's/^.*\/\(compose-go\)\/v2 v/\1 /p; s/^.*\/\(grafana-foundation-sdk\)\/go v/\1 /p'
    echo "helm ${HELM#v}"
    echo "actionlint ${ACTIONLINT#v}"
    echo "prometheus-operator ${PROMETHEUS_OPERATOR#v}"
} >"$building/versions"

# A second run finds the folder there, and it is as good as its own.
mv -T "$building" "$installed" 2>/dev/null || [ -d "$installed" ] || fail "could not rename $building to $installed"
# Those of other versions are not needed any more, and are large.
for other in "$tools"/deploy-*; do
    [ "$other" = "$installed" ] || rm -rf "$other"
done
echo "$installed"
