{{/* What controller, command line and tests know of this release: zhongjing.config.release.ReleaseConfig. No secrets. */}}
{{- define "zhongjing.release" -}}
{{- $fullname := include "zhongjing.fullname" . -}}
{{- $provisioner := include "zhongjing.provisioner" . -}}
{{- $bundled := include "zhongjing.s3Bundled" . -}}
version: 1
release: {{ .Release.Name }}
fullname: {{ $fullname }}
namespace: {{ .Release.Namespace }}
chartVersion: {{ .Chart.Version | quote }}
image: {{ include "zhongjing.image" . | quote }}
provisioner: {{ $provisioner }}
ray:
  cluster: {{ include "zhongjing.rayCluster" . }}
  service: {{ include "zhongjing.rayService" . }}
  dashboardPort: 8265
  tokenSecret: {{ include "zhongjing.tokenSecret" . }}
  tokenManaged: {{ not .Values.ray.auth.existingSecret }}
  scaling: {{ .Values.ray.scaling }}
  idleSeconds: {{ .Values.ray.idleTimeoutSeconds }}
  groups:
    {{- range $name := (include "zhongjing.ray.groups" $ | fromJson).names }}
    {{- $group := include "zhongjing.ray.group" (list $ $name) | fromYaml }}
    {{- $resources := include "zhongjing.ray.resources" (dict "opts" $group) | fromYaml }}
    - name: {{ $name }}
      workload: {{ ternary $name (printf "%s-ray-%s" $fullname $name) (eq $provisioner "kuberay") }}
      cpus: {{ $group.cpus }}
      gpus: {{ int $group.gpus }}
      memory: {{ $resources.limits.memory | quote }}
      minReplicas: {{ int $group.minReplicas }}
      maxReplicas: {{ int $group.maxReplicas }}
      {{- with $group.gpuMemoryGiB }}
      gpuMemoryGib: {{ . }}
      {{- end }}
      gpuResource: {{ $group.gpuResource }}
      {{- with $group.nodeSelector }}
      nodeSelector:
        {{- range $key, $value := . }}
        {{- if not (kindIs "invalid" $value) }}
        {{ $key | quote }}: {{ $value | quote }}
        {{- end }}
        {{- end }}
      {{- end }}
    {{- end }}
storage:
  bundled: {{ ternary true false (eq $bundled "true") }}
  uri: {{ .Values.s3.uri | quote }}
  {{- with include "zhongjing.s3Endpoint" . }}
  endpoint: {{ . | quote }}
  {{- end }}
  region: {{ .Values.s3.region | quote }}
  addressingStyle: {{ ternary "path" .Values.s3.addressingStyle (eq $bundled "true") }}
  {{- with include "zhongjing.caFile" . }}
  caBundle: {{ . }}
  {{- end }}
  {{- if $bundled }}
  service: {{ $fullname }}-s3
  port: 8333
  {{- end }}
  {{- with include "zhongjing.s3Secret" . }}
  secret: {{ . }}
  {{- end }}
  secretManaged: {{ and (eq $bundled "true") (not .Values.s3.existingSecret) }}
{{- end -}}
