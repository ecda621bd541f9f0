#!/bin/sh
# Prints the folder that holds the jars of Amazon's SQS Extended Client Library (pinned by claim_check/pom.xml).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
. "$here/npm.sh"

# The newest plugin that Maven 3.8 can use.
PLUGIN=org.apache.maven.plugins:maven-dependency-plugin:3.8.1

command -v java >/dev/null || fail "java is missing: the Extended Client Library needs it; install Java >= 17"
fill() {
    command -v mvn >/dev/null || fail "mvn is missing: the library comes from Maven; install it, for example by: apt-get install maven"
    timeout 900 mvn --batch-mode --quiet --file "$here/claim_check/pom.xml" "$PLUGIN:copy-dependencies" \
        -DincludeScope=runtime -DoutputDirectory="$1" >&2 || fail "Maven could not install the library (its words are above)"
}
install_once claim-check-java fill "$here/claim_check/pom.xml"
