{{/*
Who makes the Ray pods. `auto` is decided once: the choice lies in a ConfigMap and is kept, so that a KubeRay
installed later does not replace a running cluster. Tools that render without a cluster (Argo CD, helm template)
find no ConfigMap and decide anew each time: there ray.provisioner should be set.
*/}}
{{- define "zhongjing.provisioner" -}}
{{- $asked := .Values.ray.provisioner -}}
{{- $served := .Capabilities.APIVersions.Has "ray.io/v1/RayCluster" -}}
{{- $chosen := $asked -}}
{{- if eq $asked "auto" -}}
{{- $kept := lookup "v1" "ConfigMap" .Release.Namespace (printf "%s-provisioner" (include "zhongjing.fullname" .)) -}}
{{- $chosen = dig "data" "provisioner" "" (default dict $kept) -}}
{{- if not $chosen -}}{{- $chosen = ternary "kuberay" "static" $served -}}{{- end -}}
{{- end -}}
{{- if and (eq $chosen "kuberay") (not $served) (include "zhongjing.isReal" .) -}}
{{- if eq $asked "auto" -}}
{{- fail (printf "this release runs on KubeRay (ConfigMap %s-provisioner), but the cluster does not serve ray.io/v1 RayCluster any more: install the KubeRay operator again, or set ray.provisioner=static" (include "zhongjing.fullname" .)) -}}
{{- end -}}
{{- fail "ray.provisioner is kuberay, but the cluster does not serve ray.io/v1 RayCluster: install the KubeRay operator (k8s/README.md), or set ray.provisioner=static" -}}
{{- end -}}
{{- $chosen -}}
{{- end -}}

{{/* "true" where a cluster says what it serves. A render without one (helm template) knows groups and versions of
Kubernetes, but no kinds (Helm: pkg/chartutil/capabilities.go): what is asked for is taken at its word there. */}}
{{- define "zhongjing.isReal" -}}
{{- if .Capabilities.APIVersions.Has "apps/v1/Deployment" -}}true{{- end -}}
{{- end -}}

{{/* Why it was chosen, for NOTES. */}}
{{- define "zhongjing.provisionerReason" -}}
{{- $served := .Capabilities.APIVersions.Has "ray.io/v1/RayCluster" -}}
{{- if ne .Values.ray.provisioner "auto" -}}set by ray.provisioner
{{- else if and $served (eq (include "zhongjing.provisioner" .) "static") -}}kept from the first install; ray.provisioner=kuberay changes it
{{- else if $served -}}the cluster serves KubeRay's RayCluster
{{- else -}}the cluster does not serve KubeRay's RayCluster
{{- end -}}
{{- end -}}

{{/* Settings that exclude each other: said here, not by a pod that never comes up. */}}
{{- define "zhongjing.checks" -}}
{{- $provisioner := include "zhongjing.provisioner" . -}}
{{- if and (eq .Values.ray.scaling "ray") (ne $provisioner "kuberay") -}}
{{- fail "ray.scaling=ray is Ray's autoscaler, which needs KubeRay: set ray.scaling=controller, or ray.provisioner=kuberay" -}}
{{- end -}}
{{- if not (include "zhongjing.ray.groups" . | fromJson).names -}}
{{- fail "workers.groups is empty: the stages need at least one group of workers" -}}
{{- end -}}
{{- range $name := (include "zhongjing.ray.groups" $ | fromJson).names -}}
{{- $group := include "zhongjing.ray.group" (list $ $name) | fromYaml -}}
{{- if gt (int $group.minReplicas) (int $group.maxReplicas) -}}
{{- fail (printf "workers.groups.%s: minReplicas is greater than maxReplicas" $name) -}}
{{- end -}}
{{- if and $group.hostNetwork $.Values.networkPolicy.enabled (not $.Values.networkPolicy.nodeCIDRs) -}}
{{- fail (printf "workers.groups.%s.hostNetwork: such pods have their node's address, and no NetworkPolicy selects them. Set networkPolicy.nodeCIDRs to the range of the nodes, or networkPolicy.enabled=false" $name) -}}
{{- end -}}
{{- if and (eq $group.scratch.type "hostPath") (not $group.scratch.path) -}}
{{- fail (printf "workers.groups.%s: scratch.type hostPath needs scratch.path" $name) -}}
{{- end -}}
{{- end -}}
{{- $policy := .Values.networkPolicy -}}
{{- range $policy.apiServer.cidrs -}}
{{- if and $policy.enabled (eq $.Values.ray.scaling "ray") (hasSuffix "/0" .) -}}
{{- fail "ray.scaling=ray: the head's pod then needs the API server, and also runs what trains. Set networkPolicy.apiServer.cidrs to the API server's addresses (kubectl get endpointslices -n default -l kubernetes.io/service-name=kubernetes), or its ports are open towards everything, the inside of your network too; or set networkPolicy.enabled=false" -}}
{{- end -}}
{{- end -}}
{{- $s3 := .Values.s3 -}}
{{- if and $s3.ca.configMap $s3.ca.secret -}}
{{- fail "set s3.ca.configMap or s3.ca.secret, not both" -}}
{{- end -}}
{{- with .Values.ray.gcsFaultTolerance -}}
{{- if and .enabled (not .redisAddress) -}}
{{- fail "ray.gcsFaultTolerance needs redisAddress" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.pipelines .Values.crds.install .Release.IsInstall (include "zhongjing.isReal" .) (not (.Capabilities.APIVersions.Has "training.zhongjing.dev/v1alpha1/TrainingPipeline")) -}}
{{- fail "pipelines: the cluster does not know TrainingPipelines yet, and Helm checks every object before it installs the first. Install without pipelines and add them by helm upgrade, or apply files/trainingpipeline-crd.yaml of this chart first (kubectl apply --server-side)" -}}
{{- end -}}
{{- end -}}
