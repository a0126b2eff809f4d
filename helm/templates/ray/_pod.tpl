{{/*
The pod of a Ray node: one template for static workloads and KubeRay's groups, so that both are the same pods.
KubeRay adds what it always adds: the command, probes, /dev/shm, the wait for the head, the token.
Argument: dict of root, role (head or worker), opts, provisioner. Result: YAML of a pod template.
*/}}
{{- define "zhongjing.ray.pod" -}}
{{- $template := include "zhongjing.ray.podOurs" . | fromYaml -}}
{{- if hasKey $template "Error" -}}{{- fail (printf "pod of Ray %s: %s" .role $template.Error) -}}{{- end -}}
{{- mergeOverwrite $template (deepCopy (default dict .opts.podTemplate)) | toYaml -}}
{{- end -}}

{{- define "zhongjing.ray.podOurs" -}}
{{- $root := .root -}}
{{- $opts := .opts -}}
{{- $values := $root.Values -}}
{{- $static := eq .provisioner "static" -}}
{{- $head := eq .role "head" -}}
{{- $labels := include "zhongjing.podLabels" (list $root (printf "ray-%s" .role)) | fromYaml -}}
{{- if not $head -}}{{- $_ := set $labels "training.zhongjing.dev/group" $opts.name -}}{{- end -}}
{{- $labels = mergeOverwrite $labels (deepCopy (default dict $opts.labels)) -}}
{{- if $static -}}{{- $labels = mergeOverwrite $labels (include "zhongjing.queueLabels" $root | fromYaml) -}}{{- end -}}
{{- $annotations := dict "checksum/service-account" (toJson $values.ray.serviceAccount | sha256sum) -}}
{{- $annotations = mergeOverwrite $annotations (deepCopy $values.commonAnnotations) (deepCopy (default dict $opts.annotations)) -}}
{{- $autoscaler := and $head (eq $values.ray.scaling "ray") -}}
metadata:
  labels:
    {{- toYaml $labels | nindent 4 }}
  annotations:
    {{- toYaml $annotations | nindent 4 }}
spec:
  {{- $common := $opts }}
  {{- if not $head }}{{ $common = set (deepCopy $opts) "tolerations" (include "zhongjing.ray.tolerations" $opts | fromYamlArray) }}{{ end }}
  {{- include "zhongjing.pod.common" (dict "root" $root "opts" $common "account" (include "zhongjing.rayAccount" $root) "token" $autoscaler) | nindent 2 }}
  terminationGracePeriodSeconds: {{ int64 $opts.terminationGracePeriodSeconds }}
  {{- if $opts.hostNetwork }}
  hostNetwork: true
  {{- end }}
  {{- with $opts.dnsPolicy | default (ternary "ClusterFirstWithHostNet" "" (default false $opts.hostNetwork)) }}
  dnsPolicy: {{ . }}
  {{- end }}
  {{- with $opts.hostAliases }}
  hostAliases:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $inits := default list $opts.initContainers }}
  {{- if and $static (not $head) }}
  {{- $inits = concat (list (include "zhongjing.ray.waitForHead" (list $root $opts) | fromYaml)) $inits }}
  {{- end }}
  {{- with $inits }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: ray-{{ .role }}
      image: {{ include "zhongjing.image" $root | quote }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      terminationMessagePolicy: FallbackToLogsOnError
      {{- if $static }}
      # tini reaps what killed jobs leave; bash is replaced by Ray, which hears the signal to drain and to end.
      command: [tini, --, /bin/bash, -c, {{ include "zhongjing.ray.command" . | toJson }}]
      {{- end }}
      ports:
        {{- if $head }}
        - name: gcs-server
          containerPort: 6379
        - name: dashboard
          containerPort: 8265
        - name: client
          containerPort: 10001
        {{- end }}
        - name: metrics
          containerPort: 8090
      env:
        {{- include "zhongjing.mergeEnv" (list (include "zhongjing.ray.env" . | fromYamlArray) (concat $values.ray.env (default list $opts.env))) | nindent 8 }}
      {{- with concat $values.ray.envFrom (default list $opts.envFrom) }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if $static }}
      {{- include "zhongjing.ray.probes" . | nindent 6 }}
      {{- end }}
      lifecycle:
        {{- include "zhongjing.ray.lifecycle" $opts | nindent 8 }}
      resources:
        {{- include "zhongjing.ray.resources" . | nindent 8 }}
      securityContext:
        {{- include "zhongjing.containerSecurity" (list $root $opts) | nindent 8 }}
      volumeMounts:
        - name: home
          mountPath: /home/zhongjing
        - name: tmp
          mountPath: /tmp
        - name: scratch
          mountPath: /scratch
        {{- if $static }}
        - name: shm
          mountPath: /dev/shm
        {{- end }}
        {{- include "zhongjing.credentialMounts" (dict "root" $root "s3" true "token" $static) | nindent 8 }}
        {{- with $opts.volumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with $opts.containers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    - {{- include "zhongjing.emptyDir" (list "home" "") | nindent 6 }}
    - {{- include "zhongjing.emptyDir" (list "tmp" $opts.tmp.sizeLimit) | nindent 6 }}
    - {{- include "zhongjing.ray.scratch" $opts.scratch | nindent 6 }}
    {{- if $static }}
    - name: shm
      emptyDir:
        medium: Memory
        {{- with $opts.shm.sizeLimit }}
        sizeLimit: {{ . }}
        {{- end }}
    {{- end }}
    {{- include "zhongjing.credentialVolumes" (dict "root" $root "s3" true "token" $static) | nindent 4 }}
    {{- with $opts.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* Tolerations of a worker, a YAML list. Kubernetes keeps a pod on a node that does not answer for 300 s unless told
otherwise; Ray has given the node up by then, and nothing in the pod is worth the wait. Argument: opts. */}}
{{- define "zhongjing.ray.tolerations" -}}
{{- $given := default list .tolerations -}}
{{- $keys := list -}}
{{- range $given }}{{ $keys = append $keys (default "" .key) }}{{ end -}}
{{- range $key := list "node.kubernetes.io/not-ready" "node.kubernetes.io/unreachable" -}}
{{- if not (has $key $keys) -}}
{{- $given = append $given (dict "key" $key "operator" "Exists" "effect" "NoExecute" "tolerationSeconds" 60) -}}
{{- end -}}
{{- end -}}
{{- toYaml $given -}}
{{- end -}}

{{/* The command line of a static pod. */}}
{{- define "zhongjing.ray.command" -}}
{{- $flags := include "zhongjing.ray.startFlags" . -}}
{{- $redis := .root.Values.ray.gcsFaultTolerance -}}
{{- if and (eq .role "head") $redis.enabled $redis.existingSecret -}}
{{- if $redis.usernameKey -}}{{- $flags = printf "%s --redis-username=\"$REDIS_USERNAME\"" $flags -}}{{- end -}}
{{- $flags = printf "%s --redis-password=\"$REDIS_PASSWORD\"" $flags -}}
{{- end -}}
{{- if eq .role "head" -}}
ulimit -n 65536 2>/dev/null; exec ray start --head --block --port=6379 {{ $flags }}
{{- else -}}
ulimit -n 65536 2>/dev/null; exec ray start --block --address={{ include "zhongjing.rayHost" .root }}:6379 {{ $flags }}
{{- end -}}
{{- end -}}

{{/*
A node that hears the signal to end before Ray's GCS knows it would drain for all of drainSeconds, with nothing on it,
and the next pod in its place would wait for its GPUs. So the signal waits until the node is known.
*/}}
{{- define "zhongjing.ray.lifecycle" -}}
{{- $known := "for _ in $(seq 60); do wget -q -T 2 -t 1 -O /dev/null http://127.0.0.1:52365/api/local_raylet_healthz && exit 0; sleep 1; done" -}}
{{- $given := default dict .lifecycle -}}
{{- if not (hasKey $given "preStop") -}}
{{- $given = merge (dict "preStop" (dict "exec" (dict "command" (list "/bin/sh" "-c" $known)))) $given -}}
{{- end -}}
{{- toYaml $given -}}
{{- end -}}

{{- define "zhongjing.ray.env" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $opts := .opts -}}
{{- $static := eq .provisioner "static" -}}
{{- $head := eq .role "head" -}}
{{ include "zhongjing.env.folders" $root }}
{{ include "zhongjing.env.s3" $root }}
- name: ZHONGJING_IMAGE
  value: {{ include "zhongjing.image" $root | quote }}
- name: ZHONGJING_SCRATCH
  value: /scratch
{{- if and (eq $opts.scratch.type "emptyDir") $opts.scratch.size }}
# The limit of an emptyDir shows nowhere in the pod: jobs make room before they pass it, and are not evicted.
- name: ZHONGJING_SCRATCH_SIZE
  value: {{ $opts.scratch.size | quote }}
{{- end }}
- name: ZHONGJING_RAY_STORAGE
  value: {{ printf "%s/%s/ray" (trimSuffix "/" $values.s3.uri) $root.Release.Namespace | quote }}
- name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
  value: {{ int64 $opts.drainSeconds | quote }}
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
{{- if $static }}
{{ include "zhongjing.env.rayToken" $root }}
- name: RAY_MEMORY_BYTES
  valueFrom:
    resourceFieldRef:
      containerName: ray-{{ .role }}
      resource: limits.memory
{{- end }}
{{- if $head }}
# Stack traces of workers, in the dashboard and where an attempt hangs. Who may see them may run jobs anyway.
- name: RAY_DASHBOARD_ENABLE_PROFILING
  value: "1"
{{- with $values.monitoring.prometheus.host }}
- name: RAY_PROMETHEUS_HOST
  value: {{ . | quote }}
{{- end }}
{{- with $values.monitoring.grafana.host }}
- name: RAY_GRAFANA_HOST
  value: {{ . | quote }}
{{- end }}
{{- with $values.monitoring.grafana.iframeHost }}
- name: RAY_GRAFANA_IFRAME_HOST
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- if and $static $values.ray.gcsFaultTolerance.enabled }}
{{ include "zhongjing.ray.redisEnv" . }}
{{- end }}
{{- with include "zhongjing.env.hub" $root }}
{{ . | trim }}
{{- end }}
{{- with include "zhongjing.env.proxy" $root }}
{{ . | trim }}
{{- end }}
{{- end -}}

{{/* Fault tolerance of the GCS for StatefulSets: what gcsFaultToleranceOptions is to KubeRay. */}}
{{- define "zhongjing.ray.redisEnv" -}}
{{- $redis := .root.Values.ray.gcsFaultTolerance -}}
{{- if eq .role "head" -}}
- name: RAY_REDIS_ADDRESS
  value: {{ $redis.redisAddress | quote }}
- name: RAY_external_storage_namespace
  value: {{ default (printf "%s-%s" .root.Release.Namespace (include "zhongjing.fullname" .root)) $redis.externalStorageNamespace | quote }}
{{- if $redis.existingSecret }}
{{- if $redis.usernameKey }}
- name: REDIS_USERNAME
  valueFrom:
    secretKeyRef: {name: {{ $redis.existingSecret }}, key: {{ $redis.usernameKey }}}
{{- end }}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ $redis.existingSecret }}, key: {{ $redis.passwordKey }}}
{{- end }}
{{- else -}}
# Workers wait so long for a head that is starting again.
- name: RAY_gcs_rpc_server_reconnect_timeout_s
  value: "600"
{{- end }}
{{- end -}}

{{- define "zhongjing.ray.probes" -}}
{{- if eq .role "head" -}}
# The GCS answers through the dashboard; this path needs no token.
startupProbe:
  httpGet: {path: /api/gcs_healthz, port: dashboard}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 150
readinessProbe:
  httpGet: {path: /api/gcs_healthz, port: dashboard}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 3
livenessProbe:
  httpGet: {path: /api/gcs_healthz, port: dashboard}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 12
{{- else -}}
startupProbe:
  httpGet: {path: /api/local_raylet_healthz, port: 52365}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 150
readinessProbe:
  httpGet: {path: /api/local_raylet_healthz, port: 52365}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 3
# A node that trains may answer late for minutes; a dead raylet ends the container by itself.
livenessProbe:
  httpGet: {path: /api/local_raylet_healthz, port: 52365}
  periodSeconds: 15
  timeoutSeconds: 15
  failureThreshold: 12
{{- end }}
{{- end -}}

{{/* A worker that starts before its head would give up and be restarted with growing pauses. */}}
{{- define "zhongjing.ray.waitForHead" -}}
{{- $root := index . 0 -}}
name: wait-for-head
image: {{ include "zhongjing.image" $root | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
command:
  - /bin/sh
  - -c
  # Without the trap the first process of a container ignores the signal to end.
  - trap "exit 0" TERM; until wget -q -T 5 -t 1 -O /dev/null "$0"; do echo "the head does not answer yet"; sleep 1; done
  - http://{{ include "zhongjing.rayHost" $root }}:8265/api/gcs_healthz
resources:
  requests: {cpu: 10m, memory: 16Mi}
  limits: {memory: 64Mi}
securityContext:
  {{- include "zhongjing.containerSecurity" (list $root dict) | nindent 2 }}
{{- end -}}

{{/* Queue and gang scheduling, as labels of the workload. */}}
{{- define "zhongjing.queueLabels" -}}
{{- $queue := .Values.queue -}}
{{- $labels := dict -}}
{{- with $queue.kueue }}{{ $_ := set $labels "kueue.x-k8s.io/queue-name" . }}{{ end -}}
{{- with $queue.volcano }}{{ $_ := set $labels "volcano.sh/queue-name" . }}{{ end -}}
{{- with $queue.kai }}{{ $_ := set $labels "kai.scheduler/queue" . }}{{ end -}}
{{- with $queue.gang }}{{ $_ := set $labels "ray.io/gang-scheduling-enabled" "true" }}{{ end -}}
{{- with $queue.priorityClass }}{{ $_ := set $labels "ray.io/priority-class-name" . }}{{ end -}}
{{- toYaml $labels -}}
{{- end -}}
