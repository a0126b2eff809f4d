{{/*
Names. A workload's pods carry a label "<name>-<hash>" of at most 63 characters, so the longest name here,
<fullname>-ray-<group>, has to stay within 52: fullname 32, group 15.
*/}}
{{- define "zhongjing.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $chart := default "zhongjing" .Values.nameOverride -}}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name $chart) (contains $chart .Release.Name) -}}
{{- end -}}
{{- if gt (len $name) 32 -}}
{{- $name = printf "%s-%s" ($name | trunc 23 | trimSuffix "-") ($name | sha256sum | trunc 8) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* Labels that never change: selectors are made of them. Argument: list of root and component. */}}
{{- define "zhongjing.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: zhongjing
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of pods: the selector's and what does not change with the chart alone, or each upgrade would roll them. */}}
{{- define "zhongjing.podLabels" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.commonLabels }}{{ toYaml . }}
{{ end -}}
{{ include "zhongjing.selector" . }}
app.kubernetes.io/part-of: zhongjing
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- end -}}

{{/* Labels of objects. Argument: list of root and component. */}}
{{- define "zhongjing.labels" -}}
{{- $root := index . 0 -}}
{{ include "zhongjing.podLabels" . }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* metadata of an object. Argument: dict of root, name, component; optional labels, annotations (dicts). */}}
{{- define "zhongjing.metadata" -}}
{{- $labels := include "zhongjing.labels" (list .root .component) | fromYaml -}}
{{- $labels = mergeOverwrite $labels (deepCopy (default dict .labels)) -}}
{{- $annotations := mergeOverwrite (deepCopy .root.Values.commonAnnotations) (deepCopy (default dict .annotations)) -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- toYaml $labels | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Reference of an image. Argument: dict of repository, tag, digest. */}}
{{- define "zhongjing.reference" -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end -}}

{{- define "zhongjing.image" -}}
{{- $image := .Values.image -}}
{{- include "zhongjing.reference" (dict "repository" $image.repository "tag" (default .Chart.AppVersion $image.tag) "digest" $image.digest) -}}
{{- end -}}

{{- define "zhongjing.controllerImage" -}}
{{- $image := .Values.controller.image -}}
{{- $tag := default (printf "%s-controller" (default .Chart.AppVersion .Values.image.tag)) $image.tag -}}
{{- include "zhongjing.reference" (dict "repository" (default .Values.image.repository $image.repository) "tag" $tag "digest" $image.digest) -}}
{{- end -}}

{{/* Service accounts. Argument: list of root, component (controller, ray, s3), its serviceAccount values. */}}
{{- define "zhongjing.serviceAccount" -}}
{{- $values := index . 2 -}}
{{- if $values.create -}}
{{- default (printf "%s-%s" (include "zhongjing.fullname" (index . 0)) (index . 1)) $values.name -}}
{{- else -}}
{{- default "default" $values.name -}}
{{- end -}}
{{- end -}}

{{- define "zhongjing.rayAccount" -}}
{{- include "zhongjing.serviceAccount" (list . "ray" .Values.ray.serviceAccount) -}}
{{- end -}}
{{- define "zhongjing.controllerAccount" -}}
{{- include "zhongjing.serviceAccount" (list . "controller" .Values.controller.serviceAccount) -}}
{{- end -}}

{{/* Secrets. */}}
{{- define "zhongjing.tokenSecret" -}}
{{- default (printf "%s-ray-token" (include "zhongjing.fullname" .)) .Values.ray.auth.existingSecret -}}
{{- end -}}

{{/* Secret with the S3 credentials; empty where the pods' own role is used. */}}
{{- define "zhongjing.s3Secret" -}}
{{- if .Values.s3.existingSecret -}}{{ .Values.s3.existingSecret }}
{{- else if include "zhongjing.s3Bundled" . -}}{{ include "zhongjing.fullname" . }}-s3
{{- end -}}
{{- end -}}

{{/* "true" where the chart runs the store. */}}
{{- define "zhongjing.s3Bundled" -}}
{{- if and .Values.s3.bundled.enabled (not .Values.s3.endpoint) -}}true{{- end -}}
{{- end -}}

{{/* URL of the store inside the cluster; empty: AWS. */}}
{{- define "zhongjing.s3Endpoint" -}}
{{- if include "zhongjing.s3Bundled" . -}}
http://{{ include "zhongjing.fullname" . }}-s3.{{ .Release.Namespace }}.svc:8333
{{- else -}}{{ .Values.s3.endpoint }}{{- end -}}
{{- end -}}

{{- define "zhongjing.caFile" -}}
{{- if or .Values.s3.ca.configMap .Values.s3.ca.secret -}}/etc/zhongjing/ca/{{ .Values.s3.ca.key }}{{- end -}}
{{- end -}}

{{/* The Ray cluster's name and the service of its head. */}}
{{- define "zhongjing.rayCluster" -}}
{{- if eq (include "zhongjing.provisioner" .) "kuberay" -}}{{ include "zhongjing.fullname" . }}
{{- else -}}{{ include "zhongjing.fullname" . }}-ray{{- end -}}
{{- end -}}

{{- define "zhongjing.rayService" -}}
{{- if eq (include "zhongjing.provisioner" .) "kuberay" -}}{{ include "zhongjing.fullname" . }}-head-svc
{{- else -}}{{ include "zhongjing.fullname" . }}-ray-head{{- end -}}
{{- end -}}

{{- define "zhongjing.rayHost" -}}
{{ include "zhongjing.rayService" . }}.{{ .Release.Namespace }}.svc
{{- end -}}
