{{/* A part's name: release and part, 63 characters at most, as DNS has it. */}}
{{- define "part.name" -}}
{{ printf "%s-%s" (.root.Release.Name | trunc 54 | trimSuffix "-") .part }}
{{- end }}

{{- define "part.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "part.labels" -}}
{{ include "part.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "part.image" -}}
image: {{ .values.image.repository }}:{{ .values.image.tag | default .root.Chart.AppVersion }}
imagePullPolicy: {{ .values.image.pullPolicy }}
{{- end }}

{{/* Settings as environment variables: log_level becomes MULTIMODAL_LOG_LEVEL. Helm has whole numbers as floating-point
     ones too, and would write a million as 1e+06. */}}
{{- define "part.settings" -}}
{{- range $name, $value := .values.settings }}
- name: MULTIMODAL_{{ upper $name }}
  {{- if and (kindIs "float64" $value) (eq $value (floor $value)) }}
  value: {{ int64 $value | quote }}
  {{- else }}
  value: {{ $value | toString | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{/* For the pod. The user is the images' own. */}}
{{- define "part.podSecurity" -}}
automountServiceAccountToken: false
# A Service named "multimodal" would set MULTIMODAL_PORT, which is a setting of the gateway.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "part.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- define "part.placement" -}}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The address of each worker, as a pod of its StatefulSet. */}}
{{- define "gateway.workers" -}}
{{- $name := include "part.name" . }}
{{- $addresses := list }}
{{- range $place := until (int .root.Values.worker.replicas) }}
{{- $addresses = append $addresses (printf "%s-%d.%s:8001" $name $place $name) }}
{{- end }}
{{- join "," $addresses }}
{{- end }}
