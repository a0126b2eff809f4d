{{/* Alerts of this release. $labels and $value are Prometheus' own templates. */}}
{{- define "zhongjing.alerts" -}}
{{- $namespace := .Release.Namespace -}}
{{- $controller := printf "namespace=%q,pod=~\"%s-controller-.*\"" $namespace (include "zhongjing.fullname" .) -}}
{{- $training := printf "namespace=%q" $namespace -}}
- name: {{ include "zhongjing.fullname" . }}-controller
  rules:
    - alert: ZhongjingNoLeader
      # Where a controller was scraped in the last hours: where nobody scrapes there is nothing to say.
      expr: count(present_over_time(zhongjing_controller_leader{ {{- $controller -}} }[6h])) unless sum(zhongjing_controller_leader{ {{- $controller -}} }) > 0
      for: 3m
      labels: {severity: critical, namespace: {{ $namespace }}}
      annotations:
        summary: No controller leads in {{ $namespace }}.
        description: Stages that run go on, but no stage is started or retried and no status is updated. Look at the controller's pods and their log.
    - alert: ZhongjingControllerFailing
      expr: sum(increase(zhongjing_controller_failures_total{ {{- $controller -}} }[15m])) > 10
      for: 5m
      labels: {severity: warning, namespace: {{ $namespace }}}
      annotations:
        summary: The controller's passes over the pipelines break off in {{ $namespace }}.
        description: Its log says at what, mostly the Kubernetes API or the object store.
    - alert: ZhongjingQueueStands
      expr: max(zhongjing_controller_queue_length{ {{- $controller -}} }) > 0 and max(zhongjing_controller_cluster_busy{ {{- $controller -}} }) == 0
      for: 15m
      labels: {severity: warning, namespace: {{ $namespace }}}
      annotations:
        summary: Pipelines wait in {{ $namespace }} although the Ray cluster is idle.
        description: The condition Progressing of the first one says what it waits for.
    - alert: ZhongjingPipelineFailed
      expr: max(zhongjing_controller_pipelines{ {{- $controller -}} ,state="Failed"}) > (max(zhongjing_controller_pipelines{ {{- $controller -}} ,state="Failed"} offset 15m) or 0 * max(zhongjing_controller_queue_length{ {{- $controller -}} } offset 15m))
      labels: {severity: warning, namespace: {{ $namespace }}}
      annotations:
        summary: A pipeline has failed in {{ $namespace }}.
        description: kubectl -n {{ $namespace }} get tp names it; its condition Failed has the reason and the remedy.
    - alert: ZhongjingStageRetried
      expr: max by (pipeline, stage) (zhongjing_stage_attempts{ {{- $controller -}} }) > 3
      labels: {severity: warning, namespace: {{ $namespace }}}
      annotations:
        summary: {{ `Stage {{ $labels.stage }} of {{ $labels.pipeline }} is at attempt {{ $value }}.` | quote }}
        description: Its events say what ended the attempts before.
    - alert: ZhongjingStageStands
      expr: time() - max by (pipeline, stage) (zhongjing_stage_updated_timestamp_seconds{ {{- $controller -}} }) > 3600
      for: 1h
      labels: {severity: warning, namespace: {{ $namespace }}}
      annotations:
        summary: {{ `Stage {{ $labels.stage }} of {{ $labels.pipeline }} has done nothing for two hours.` | quote }}
        description: The controller ends an attempt by itself after progressDeadlineSeconds; a shorter one finds hangs sooner.
- name: {{ include "zhongjing.fullname" . }}-training
  rules:
    - alert: ZhongjingRayHeadDown
      expr: count(present_over_time(up{ {{- $training -}} ,app_kubernetes_io_component="ray-head"}[6h])) unless max(up{ {{- $training -}} ,app_kubernetes_io_component="ray-head"}) > 0
      for: 5m
      labels: {severity: critical, namespace: {{ $namespace }}}
      annotations:
        summary: Ray's head does not answer in {{ $namespace }}.
        description: Without it no stage runs. kubectl -n {{ $namespace }} describe pod -l app.kubernetes.io/component=ray-head
    - alert: ZhongjingLossNotFinite
      # A number that is not equal to itself is not a number.
      expr: ray_zhongjing_train_loss{ {{- $training -}} } != ray_zhongjing_train_loss{ {{- $training -}} }
      labels: {severity: warning, namespace: {{ $namespace }}}
      annotations:
        summary: {{ `The loss of {{ $labels.stage }} of {{ $labels.pipeline }} is not a number.` | quote }}
        description: The spike guard lowers the learning rate; if it does not recover, lower learningRate.
    - alert: ZhongjingWaitsForData
      # Not of ppo: its data are rollouts, which the GPUs make.
      expr: avg by (pipeline, stage) (avg_over_time(ray_zhongjing_train_data_seconds{ {{- $training -}} ,stage!="ppo"}[30m])) > 0.3 * avg by (pipeline, stage) (avg_over_time(ray_zhongjing_train_step_seconds{ {{- $training -}} ,stage!="ppo"}[30m]))
      for: 30m
      labels: {severity: info, namespace: {{ $namespace }}}
      annotations:
        summary: {{ `{{ $labels.stage }} of {{ $labels.pipeline }} waits for data during a third of its steps.` | quote }}
        description: The object store is too slow for the GPUs; more scratch space lets workers read ahead.
    {{- if and (include "zhongjing.s3Bundled" .) .Values.s3.bundled.persistence.enabled }}
    - alert: ZhongjingStoreFills
      expr: kubelet_volume_stats_available_bytes{ {{- $training -}} ,persistentvolumeclaim="{{ include "zhongjing.s3Claim" . }}"} / kubelet_volume_stats_capacity_bytes{ {{- $training -}} ,persistentvolumeclaim="{{ include "zhongjing.s3Claim" . }}"} < 0.1
      for: 10m
      labels: {severity: critical, namespace: {{ $namespace }}}
      annotations:
        summary: The volume of the bundled store in {{ $namespace }} is nine tenths full.
        description: A full store stops every stage. Enlarge the volume, or delete what is not needed. Deleting a pipeline frees nothing while its deletionPolicy is Retain, the default; docs/operations.md, "Free space in the store", says what does.
    {{- end }}
{{- end -}}
