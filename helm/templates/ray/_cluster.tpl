{{/* spec of the RayCluster, before ray.rayCluster.spec is laid over it. */}}
{{- define "zhongjing.ray.clusterSpec" -}}
{{- $values := .Values -}}
{{- $head := mergeOverwrite (dict "gpus" 0) (deepCopy $values.ray.head) -}}
rayVersion: {{ $values.ray.version | quote }}
# mode has to be said: an empty authOptions turns nothing on.
authOptions:
  mode: token
  secretName: {{ include "zhongjing.tokenSecret" . }}
# Without this KubeRay ignores changes of the pod templates.
upgradeStrategy:
  type: Recreate
{{- if eq $values.ray.scaling "ray" }}
enableInTreeAutoscaling: true
autoscalerOptions:
  {{- $options := dict "version" "v2" "idleTimeoutSeconds" (int64 $values.ray.idleTimeoutSeconds) "imagePullPolicy" $values.image.pullPolicy "securityContext" (include "zhongjing.containerSecurity" (list . dict) | fromYaml) }}
  {{- /* Its root file system is read-only too; the volumes are the head's. */}}
  {{- $_ := set $options "env" (include "zhongjing.env.folders" . | fromYamlArray) }}
  {{- $_ := set $options "volumeMounts" (list (dict "name" "home" "mountPath" "/home/zhongjing") (dict "name" "tmp" "mountPath" "/tmp")) }}
  {{- $_ := set $options "resources" (dict "requests" (dict "cpu" "50m" "memory" "256Mi") "limits" (dict "memory" "512Mi")) }}
  {{- mergeOverwrite $options (deepCopy $values.ray.autoscalerOptions) | toYaml | nindent 2 }}
{{- end }}
{{- with $values.ray.gcsFaultTolerance }}
{{- if .enabled }}
gcsFaultToleranceOptions:
  redisAddress: {{ .redisAddress | quote }}
  externalStorageNamespace: {{ default (printf "%s-%s" $.Release.Namespace (include "zhongjing.fullname" $)) .externalStorageNamespace | quote }}
  {{- if .existingSecret }}
  {{- if .usernameKey }}
  redisUsername:
    valueFrom:
      secretKeyRef: {name: {{ .existingSecret }}, key: {{ .usernameKey }}}
  {{- end }}
  redisPassword:
    valueFrom:
      secretKeyRef: {name: {{ .existingSecret }}, key: {{ .passwordKey }}}
  {{- end }}
{{- end }}
{{- end }}
headGroupSpec:
  {{- $group := dict "serviceType" $head.service.type "rayStartParams" (include "zhongjing.ray.startParams" (dict "role" "head" "opts" $head "provisioner" "kuberay") | fromYaml) }}
  {{- if or $head.service.annotations $head.service.labels }}
  {{- $_ := set $group "headService" (dict "metadata" (dict "name" (include "zhongjing.rayService" .) "annotations" $head.service.annotations "labels" $head.service.labels)) }}
  {{- end }}
  {{- $_ := set $group "template" (include "zhongjing.ray.pod" (dict "root" . "role" "head" "opts" $head "provisioner" "kuberay") | fromYaml) }}
  {{- mergeOverwrite $group (deepCopy $head.rayGroupSpec) | toYaml | nindent 2 }}
workerGroupSpecs:
  {{- range $name := (include "zhongjing.ray.groups" $ | fromJson).names }}
  {{- $opts := include "zhongjing.ray.group" (list $ $name) | fromYaml }}
  {{- $group := dict "groupName" $name "minReplicas" (int $opts.minReplicas) "maxReplicas" (int $opts.maxReplicas) }}
  {{- if eq $values.ray.scaling "ray" }}
  {{- $_ := set $group "idleTimeoutSeconds" (int64 $values.ray.idleTimeoutSeconds) }}
  {{- else if eq $values.ray.scaling "none" }}
  {{- $_ := set $group "replicas" (int $opts.maxReplicas) }}
  {{- end }}
  {{- $_ := set $group "rayStartParams" (include "zhongjing.ray.startParams" (dict "role" "worker" "opts" $opts "provisioner" "kuberay") | fromYaml) }}
  {{- $_ := set $group "template" (include "zhongjing.ray.pod" (dict "root" $ "role" "worker" "opts" $opts "provisioner" "kuberay") | fromYaml) }}
  -
    {{- mergeOverwrite $group (deepCopy (default dict $opts.rayGroupSpec)) | toYaml | nindent 4 }}
  {{- end }}
{{- end -}}
