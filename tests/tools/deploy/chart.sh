#!/bin/sh
# Checks the Helm chart.
#
#   chart.sh render VALUES RELEASE PYTHON CRD     lints and renders it, and validates the manifests for a release of
#                                                 Kubernetes; RELEASE as in kubernetes.py
#   chart.sh refuse SENTENCE [HELM_OPTION...]     values that must be refused with this sentence
set -eu
chart=deploy/helm/outbox-relay
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
export HELM_CACHE_HOME="$work/helm" HELM_CONFIG_HOME="$work/helm" HELM_DATA_HOME="$work/helm"

case $1 in
render)
    values=$2 release=$3 python=$4 definition=$5
    helm lint --strict --quiet "$chart" --values "$values"
    helm template lottery "$chart" --namespace lottery --values "$values" >"$work/rendered.yaml"
    "$python" tests/tools/deploy/kubernetes.py "$release" "$definition" "$work/rendered.yaml"
    ;;
refuse)
    sentence=$2
    shift 2
    if helm template lottery "$chart" "$@" >"$work/said" 2>&1; then
        echo "not refused: $*"
        exit 1
    fi
    grep -qF -- "$sentence" "$work/said" && exit
    echo "refused, but without the words: $sentence"
    cat "$work/said"
    exit 1
    ;;
esac
