{{/* Name of the store's volume claim: as a StatefulSet of an earlier chart named it, so that its data are found. */}}
{{- define "zhongjing.s3Claim" -}}
data-{{ include "zhongjing.fullname" . }}-s3-0
{{- end -}}

{{/* What Kubernetes would refuse with a bare list of fields, said with what to do. */}}
{{- define "zhongjing.s3Checks" -}}
{{- $namespace := .Release.Namespace -}}
{{- $name := printf "%s-s3" (include "zhongjing.fullname" .) -}}
{{- $there := lookup "apps/v1" "StatefulSet" $namespace $name -}}
{{- if $there -}}
{{- if or $there.spec.volumeClaimTemplates (ne $there.spec.podManagementPolicy "Parallel") -}}
{{- fail (printf "the StatefulSet %s is of an earlier chart, and Kubernetes does not let change how it makes pods and volumes. Replace it (its pod and the data stay), then upgrade again: kubectl -n %s delete statefulset %s --cascade=orphan" $name $namespace $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "zhongjing.s3VolumeChecks" -}}
{{- $namespace := .Release.Namespace -}}
{{- $claim := include "zhongjing.s3Claim" . -}}
{{- $opts := .Values.s3.bundled.persistence -}}
{{- $there := lookup "v1" "PersistentVolumeClaim" $namespace $claim -}}
{{- if $there -}}
{{- $owner := get (default dict $there.metadata.annotations) "meta.helm.sh/release-name" -}}
{{- if ne $owner .Release.Name -}}
{{- fail (printf "the volume claim %s is there, and not this release's. To take it with its data: kubectl -n %s label pvc %s app.kubernetes.io/managed-by=Helm --overwrite && kubectl -n %s annotate pvc %s meta.helm.sh/release-name=%s meta.helm.sh/release-namespace=%s helm.sh/resource-policy=keep --overwrite" $claim $namespace $claim $namespace $claim .Release.Name $namespace) -}}
{{- end -}}
{{- $size := $there.spec.resources.requests.storage -}}
{{- $asked := include "zhongjing.bytes" $opts.size | int64 -}}
{{- $has := include "zhongjing.bytes" $size | int64 -}}
{{- if lt $asked $has -}}
{{- fail (printf "s3.bundled.persistence.size is %s, and the volume claim %s has %s: a volume cannot be made smaller. Set it to %s or more, or move the data to another volume (docs/operations.md, The store's volume)" $opts.size $claim $size $size) -}}
{{- end -}}
{{- if and (gt $asked $has) (ne (dig "status" "phase" "" $there) "Bound") -}}
{{- fail (printf "s3.bundled.persistence.size is %s, and the volume claim %s of %s is not bound yet: only a bound one can grow. Where no data are in it: kubectl -n %s delete pvc %s, then upgrade again" $opts.size $claim $size $namespace $claim) -}}
{{- end -}}
{{- if and $opts.storageClass (ne $opts.storageClass (default "" $there.spec.storageClassName)) -}}
{{- fail (printf "s3.bundled.persistence.storageClass is %s, and the volume claim %s has %s: it cannot be changed. Leave it, or move the data to another volume (docs/operations.md, The store's volume)" $opts.storageClass $claim (default "none" $there.spec.storageClassName)) -}}
{{- end -}}
{{- if ne (toJson (sortAlpha $opts.accessModes)) (toJson (sortAlpha $there.spec.accessModes)) -}}
{{- fail (printf "s3.bundled.persistence.accessModes is %s, and the volume claim %s has %s: it cannot be changed. Leave it, or move the data to another volume (docs/operations.md, The store's volume)" (join ", " $opts.accessModes) $claim (join ", " $there.spec.accessModes)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
