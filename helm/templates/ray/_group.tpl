{{/* Names of the worker groups, sorted: a JSON list under "names". A group that is null is none: Helm itself drops it,
but the option --reuse-values brings the null back. */}}
{{- define "zhongjing.ray.groups" -}}
{{- $names := list -}}
{{- range $name, $group := .Values.workers.groups -}}
{{- if not (kindIs "invalid" $group) -}}{{- $names = append $names $name -}}{{- end -}}
{{- end -}}
{{- dict "names" (sortAlpha $names) | toJson -}}
{{- end -}}

{{/* The options of a worker group: its own over workers.defaults. Argument: list of root and name. YAML of a dict. */}}
{{- define "zhongjing.ray.group" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $own := default dict (get $root.Values.workers.groups $name) -}}
{{- $group := mergeOverwrite (deepCopy $root.Values.workers.defaults) (dict "scratch" (deepCopy $root.Values.workers.scratch)) (deepCopy $own) -}}
{{- toYaml (set $group "name" $name) -}}
{{- end -}}

{{/* Requests and limits of a Ray container. Argument: dict of opts (cpus, gpus, gpuResource, memory, scratch, tmp). */}}
{{- define "zhongjing.ray.resources" -}}
{{- $opts := .opts -}}
{{- $requests := dict "cpu" (toString $opts.cpus) "memory" (toString $opts.memory) -}}
{{- $limits := dict "memory" (toString $opts.memory) -}}
{{- $scratch := ternary $opts.scratch.size "" (eq $opts.scratch.type "emptyDir") -}}
{{- $disk := include "zhongjing.sum" (list $scratch $opts.tmp.sizeLimit) -}}
{{- if and $opts.scratch.reserve (ne $disk "0Mi") -}}
{{- $_ := set $requests "ephemeral-storage" $disk -}}
{{- end -}}
{{- if gt (int (default 0 $opts.gpus)) 0 -}}
{{- $_ := set $limits $opts.gpuResource (toString $opts.gpus) -}}
{{- end -}}
{{- mergeOverwrite (dict "requests" $requests "limits" $limits) (deepCopy (default dict $opts.resources)) | toYaml -}}
{{- end -}}

{{/* Parameters of `ray start`, all text. Argument: dict of role, opts, provisioner. YAML of a dict. */}}
{{- define "zhongjing.ray.startParams" -}}
{{- $opts := .opts -}}
{{- $params := dict "metrics-export-port" "8090" -}}
{{- if eq .role "head" -}}
{{- $params = merge $params (dict "num-cpus" "0" "num-gpus" "0" "dashboard-host" "0.0.0.0" "disable-usage-stats" "true") -}}
{{- else -}}
{{- $params = merge $params (dict "num-cpus" (toString $opts.cpus) "num-gpus" (toString (default 0 $opts.gpus))) -}}
{{- end -}}
{{- with $opts.objectStoreMemory -}}
{{- $_ := set $params "object-store-memory" (include "zhongjing.bytes" .) -}}
{{- end -}}
{{- if eq .provisioner "static" -}}
{{- $_ := set $params "memory" "$(RAY_MEMORY_BYTES)" -}}
{{- end -}}
{{- range $key, $value := default dict $opts.rayStartParams -}}
{{- $_ := set $params $key (toString $value) -}}
{{- end -}}
{{- toYaml $params -}}
{{- end -}}

{{/* The same as flags. Argument: dict as above. As KubeRay does it: true is the bare flag, false none. */}}
{{- define "zhongjing.ray.startFlags" -}}
{{- $flags := list -}}
{{- range $key, $value := include "zhongjing.ray.startParams" . | fromYaml -}}
{{- if and (has $value (list "true" "false")) (not (has $key (list "log-color" "include-dashboard" "include-log-monitor"))) -}}
{{- if eq $value "true" -}}{{- $flags = append $flags (printf "--%s" $key) -}}{{- end -}}
{{- else -}}
{{- $flags = append $flags (printf "--%s=%s" $key $value) -}}
{{- end -}}
{{- end -}}
{{- join " " $flags -}}
{{- end -}}

{{/* Volume for scratch space. Argument: the scratch options. */}}
{{- define "zhongjing.ray.scratch" -}}
name: scratch
{{- if eq .type "hostPath" }}
hostPath:
  path: {{ .path }}
  type: Directory
{{- else if eq .type "ephemeral" }}
ephemeral:
  volumeClaimTemplate:
    spec:
      accessModes: [ReadWriteOnce]
      {{- with .storageClass }}
      storageClassName: {{ . }}
      {{- end }}
      resources:
        requests:
          storage: {{ .size }}
{{- else }}
emptyDir:
  {{- if .size }}
  sizeLimit: {{ .size }}
  {{- else }} {}
  {{- end }}
{{- end }}
{{- end -}}

{{/* emptyDir of a name and a limit that may be empty. Argument: list of name and limit. */}}
{{- define "zhongjing.emptyDir" -}}
name: {{ index . 0 }}
emptyDir: {{ with index . 1 }}{sizeLimit: {{ . }}}{{ else }}{}{{ end }}
{{- end -}}
