{{- define "rerankd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "rerankd.fullname" -}}
{{- $name := printf "%s-%s" .Release.Name (include "rerankd.name" .) }}
{{- if .Values.fullnameOverride }}
{{- $name = .Values.fullnameOverride }}
{{- else if contains (include "rerankd.name" .) .Release.Name }}
{{- $name = .Release.Name }}
{{- end }}
{{- $name = $name | trunc 63 | trimSuffix "-" }}
{{- /* The name of a Service is narrower than those of other objects, and of Helm's releases. */}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
{{- fail (printf "fullnameOverride: the objects cannot be called %s; set a name of lower-case letters, digits and dashes that begins with a letter" $name) }}
{{- end }}
{{- $name }}
{{- end }}

{{- define "rerankd.selector" -}}
app.kubernetes.io/name: {{ include "rerankd.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "rerankd.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "rerankd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "rerankd.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "rerankd.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* "yes" where the chart makes a claim that pods of one node alone can mount */}}
{{- define "rerankd.oneNode" -}}
{{- $cache := .Values.modelCache }}
{{- if and $cache.enabled (not $cache.existingClaim) (not (has "ReadWriteMany" $cache.accessModes)) }}yes{{ end }}
{{- end }}

{{- /* Longer than preStop and --shutdown-timeout together: the server's own end comes first. */}}
{{- define "rerankd.graceSeconds" -}}
{{- $shutdown := index .Values.config "shutdown-timeout" | default 10 | toString | float64 }}
{{- add .Values.preStopSeconds (ceil $shutdown) 5 }}
{{- end }}

{{- /* Fails where values repeat what the chart sets itself: `own` and `given` are mappings, `place` names the values. */}}
{{- define "rerankd.refuseOwn" -}}
{{- range $key, $_ := .given }}
{{- if hasKey $.own $key }}
{{- fail (printf "%s.%s: the chart sets it itself; leave it out" $.place $key) }}
{{- end }}
{{- end }}
{{- end }}
