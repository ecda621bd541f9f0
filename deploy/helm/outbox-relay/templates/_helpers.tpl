{{/* Names, labels, what two pods have in common, and the check of values that a schema cannot express. */}}

{{- define "outbox-relay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "outbox-relay.fullname" -}}
{{- $name := include "outbox-relay.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "outbox-relay.selector" -}}
app.kubernetes.io/name: {{ include "outbox-relay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "outbox-relay.labels" -}}
{{ include "outbox-relay.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "outbox-relay.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "outbox-relay.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "outbox-relay.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{/* NAME=QUEUE_URL;role=ARN;external-id=ID;fair=true, separated by commas. A comma inside a value is written as %2C. */}}
{{- define "outbox-relay.destinations" -}}
{{- $parts := list }}
{{- range $name, $destination := .Values.destinations }}
{{- $part := printf "%s=%s" $name $destination.queueUrl }}
{{- with $destination.role }}{{ $part = printf "%s;role=%s" $part (replace "," "%2C" .) }}{{ end }}
{{- with $destination.externalId }}{{ $part = printf "%s;external-id=%s" $part (replace "," "%2C" .) }}{{ end }}
{{- if $destination.fair }}{{ $part = printf "%s;fair=true" $part }}{{ end }}
{{- $parts = append $parts $part }}
{{- end }}
{{- join "," $parts }}
{{- end }}

{{/* Everything that is wrong, at once. */}}
{{- define "outbox-relay.check" -}}
{{- $problems := list }}
{{- if not .Values.image.repository }}
{{- $problems = append $problems "image.repository is not set; set it to where the image of the Dockerfile was pushed to" }}
{{- end }}
{{- if not .Values.destinations }}
{{- $problems = append $problems "destinations is empty; set, for example, destinations.tickets.queueUrl to a queue's URL" }}
{{- end }}
{{- $named := keys .Values.env }}
{{- range .Values.extraEnv }}{{ $named = append $named .name }}{{ end }}
{{- if .Values.database.existingSecret }}
{{- range list "DATABASE_URL" "DATABASE_URL_FILE" }}
{{- if has . $named }}
{{- $problems = append $problems (printf "%s is set although database.existingSecret names a Secret; leave one of them out" .) }}
{{- end }}
{{- end }}
{{- else if not (or (has "DATABASE_URL" $named) (has "DATABASE_URL_FILE" $named) (has "PGHOST" $named) (has "PGHOSTADDR" $named) (has "PGSERVICE" $named)) }}
{{- $problems = append $problems "database.existingSecret is not set; set it to a Secret with a DATABASE_URL, or name the database in env (DATABASE_URL or PGHOST)" }}
{{- end }}
{{- $listen := get .Values.env "OUTBOX_RELAY_HTTP_LISTEN" | default "" }}
{{- if or (hasPrefix "127." $listen) (hasPrefix "[::1]" $listen) }}
{{- $problems = append $problems (printf "OUTBOX_RELAY_HTTP_LISTEN is %s, where the probes of Kubernetes reach nothing; leave it out, and restrict the port by a NetworkPolicy" $listen) }}
{{- end }}
{{- $instead := dict "OUTBOX_RELAY_DESTINATIONS" "destinations" "OUTBOX_RELAY_DRAIN_TIMEOUT" "drainTimeoutSeconds" "OUTBOX_RELAY_SCHEMA" "schema" }}
{{- if .Values.awsRegion }}{{ $_ := set $instead "AWS_REGION" "awsRegion" }}{{ end }}
{{- range $variable, $value := $instead }}
{{- if has $variable $named }}
{{- $problems = append $problems (printf "%s is set in env or extraEnv; set %s instead" $variable $value) }}
{{- end }}
{{- end }}
{{- range .Values.extraEnv }}
{{- if hasKey $.Values.env .name }}
{{- $problems = append $problems (printf "%s is in env and in extraEnv; leave one of them out" .name) }}
{{- end }}
{{- end }}
{{- $least := add .Values.drainTimeoutSeconds 2 | int }}
{{- if lt (int .Values.terminationGracePeriodSeconds) $least }}
{{- $problems = append $problems (printf "terminationGracePeriodSeconds is %d, too short for drainTimeoutSeconds %d; set it to %d or more" (int .Values.terminationGracePeriodSeconds) (int .Values.drainTimeoutSeconds) $least) }}
{{- end }}
{{- if and .Values.migrate.enabled (not .Values.migrate.existingSecret) }}
{{- $problems = append $problems "migrate.enabled is true, but migrate.existingSecret is not set; set it to the Secret with the owner's DATABASE_URL" }}
{{- end }}
{{- if and .Values.podDisruptionBudget.enabled (le (int .Values.replicaCount) (int .Values.podDisruptionBudget.minAvailable)) }}
{{- $problems = append $problems (printf "podDisruptionBudget.minAvailable is %d of %d replicas, so no node could ever be drained; set it lower or replicaCount higher" (int .Values.podDisruptionBudget.minAvailable) (int .Values.replicaCount)) }}
{{- end }}
{{- if $problems }}
{{- fail (printf "\n  %s\n" (join "\n  " $problems)) }}
{{- end }}
{{- end }}
