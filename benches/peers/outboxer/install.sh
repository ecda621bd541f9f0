#!/bin/sh
GOBIN="$PEER_HOME/bin" go install "github.com/fvdsn/outboxer/cmd/outboxer@$VERSION" ||
    { echo "go install gets no github.com/fvdsn/outboxer $VERSION from the module proxy here" >&2; exit 1; }
