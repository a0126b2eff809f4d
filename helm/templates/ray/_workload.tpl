{{/*
A workload that the controller makes: Ray's worker groups, or KubeRay's RayCluster with all of them. The number of pods
stands in the same object as their template, a RayCluster even has it in one list with the template, which is written as a
whole. With two writers each upgrade would set back what the other wrote. So the chart says what is to be made, in a
ConfigMap, and the controller is the only one who writes the object. The ConfigMap owns it: it goes with the release.
Argument: list of root and object (a dict).
*/}}
{{- define "zhongjing.ray.workload" -}}
{{- $root := index . 0 -}}
{{- $object := index . 1 -}}
{{- $_ := set $object.metadata.labels "app.kubernetes.io/managed-by" "zhongjing-controller" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "zhongjing.metadata" (dict "root" $root "name" (printf "%s-%s" $object.metadata.name (lower $object.kind)) "component" "ray-workload") | nindent 2 }}
data:
  workload: |
    {{- toPrettyJson $object | nindent 4 }}
{{- end -}}

{{/* The Deployment of a worker group. Workers have no identity: one on a node that is lost is made anew elsewhere, which a
StatefulSet would not do. Argument: list of root and name of the group. */}}
{{- define "zhongjing.ray.workerDeployment" -}}
{{- $root := index . 0 -}}
{{- $group := index . 1 -}}
{{- $opts := include "zhongjing.ray.group" . | fromYaml -}}
{{- $labels := mergeOverwrite (dict "training.zhongjing.dev/group" $group) (include "zhongjing.queueLabels" $root | fromYaml) -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "zhongjing.metadata" (dict "root" $root "name" (printf "%s-ray-%s" (include "zhongjing.fullname" $root) $group) "component" "ray-worker" "labels" $labels) | nindent 2 }}
spec:
  {{- if eq $root.Values.ray.scaling "none" }}
  replicas: {{ int $opts.maxReplicas }}
  {{- end }}
  revisionHistoryLimit: 1
  # Old pods end first: a second one of a group may find no GPU, or have a node made for a minute.
  strategy:
    type: Recreate
  selector:
    matchLabels:
      {{- include "zhongjing.selector" (list $root "ray-worker") | nindent 6 }}
      training.zhongjing.dev/group: {{ $group }}
  template:
    {{- include "zhongjing.ray.pod" (dict "root" $root "role" "worker" "opts" $opts "provisioner" "static") | nindent 4 }}
{{- end -}}

{{/* The RayCluster. Argument: root. */}}
{{- define "zhongjing.ray.cluster" -}}
{{- $labels := mergeOverwrite (include "zhongjing.queueLabels" . | fromYaml) (deepCopy .Values.ray.rayCluster.labels) -}}
{{- $spec := include "zhongjing.ray.clusterSpec" . | fromYaml -}}
{{- if hasKey $spec "Error" }}{{ fail (printf "RayCluster: %s" $spec.Error) }}{{ end -}}
apiVersion: ray.io/v1
kind: RayCluster
metadata:
  {{- include "zhongjing.metadata" (dict "root" . "name" (include "zhongjing.rayCluster" .) "component" "ray-head" "labels" $labels "annotations" .Values.ray.rayCluster.annotations) | nindent 2 }}
spec:
  {{- mergeOverwrite $spec (deepCopy .Values.ray.rayCluster.spec) | toYaml | nindent 2 }}
{{- end -}}
