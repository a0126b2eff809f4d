{{/* Whose the CustomResourceDefinition on this cluster is: "" if there is none or it cannot be seen, "own" if it is
this release's, else a sentence. Another's is left alone: Helm would refuse to take it, and the release with it. */}}
{{- define "zhongjing.crdOwner" -}}
{{- $there := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "trainingpipelines.training.zhongjing.dev" -}}
{{- if $there -}}
{{- $annotations := default dict $there.metadata.annotations -}}
{{- $name := get $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" -}}
{{- if and (eq $name .Release.Name) (eq $namespace .Release.Namespace) -}}
own
{{- else if $name -}}
release {{ $name }} of namespace {{ $namespace }}
{{- else -}}
somebody who did not use Helm
{{- end -}}
{{- end -}}
{{- end -}}
