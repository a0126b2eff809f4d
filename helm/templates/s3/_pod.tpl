{{/*
Pod template of the bundled store: one SeaweedFS process. Master, volume server and filer speak to each other
without authentication, so they listen on loopback only; the S3 gateway alone is reached from outside. Its image is the
controller's, which is small and there before the one that trains.
*/}}
{{- define "zhongjing.s3Pod" -}}
{{- $opts := .Values.s3.bundled -}}
{{- $secret := include "zhongjing.s3Secret" . -}}
metadata:
  labels:
    {{- mergeOverwrite (include "zhongjing.podLabels" (list . "s3") | fromYaml) (deepCopy $opts.labels) | toYaml | nindent 4 }}
  {{- with mergeOverwrite (deepCopy .Values.commonAnnotations) (deepCopy $opts.annotations) }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "zhongjing.pod.common" (dict "root" . "opts" $opts "account" (include "zhongjing.serviceAccount" (list . "s3" $opts.serviceAccount)) "token" false) | nindent 2 }}
  terminationGracePeriodSeconds: 30
  initContainers:
    # A power cut can leave a volume's index cut in the middle of an entry; SeaweedFS would not load the volume.
    - name: repair
      image: {{ include "zhongjing.controllerImage" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      terminationMessagePolicy: FallbackToLogsOnError
      command:
        - python
        - -c
        - |
          import logging, shutil
          from pathlib import Path
          from zhongjing.storage.volumes import repair_indexes
          logging.basicConfig(level=logging.INFO)
          repair_indexes(Path(shutil.which("weed")), Path("/data"))
      resources:
        {{- toYaml $opts.resources | nindent 8 }}
      securityContext:
        {{- include "zhongjing.containerSecurity" (list . $opts) | nindent 8 }}
      volumeMounts:
        - {name: data, mountPath: /data}
        - {name: tmp, mountPath: /tmp}
  containers:
    - name: s3
      image: {{ include "zhongjing.controllerImage" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      terminationMessagePolicy: FallbackToLogsOnError
      command:
        - weed
        - -logtostderr
        - server
        - -dir=/data
        - -ip=127.0.0.1
        - -ip.bind=127.0.0.1
        - -master.telemetry=false
        - -master.electionTimeout=1s
        - -master.volumeSizeLimitMB={{ int64 $opts.volumeSizeLimitMB }}
        - -volume.max={{ int64 $opts.maxVolumes }}
        # A disk is not filled to the last byte.
        - -volume.minFreeSpace=256MiB
        - -volume.preStopSeconds=0
        - -filer
        - -s3
        - -s3.port=8333
        - -s3.ip.bind=0.0.0.0
        - -s3.config=/etc/zhongjing/s3/s3.json
        - -s3.autoCreateBucket=false
        - -s3.port.iceberg=0
        - -s3.port.lance=0
        {{- range $opts.args }}
        - {{ . | quote }}
        {{- end }}
      workingDir: /data
      ports:
        - name: s3
          containerPort: 8333
      env:
        {{- include "zhongjing.mergeEnv" (list (include "zhongjing.s3Env" . | fromYamlArray) $opts.env) | nindent 8 }}
      # Ready means: the gateway answers and the master has a volume server, else every write would fail.
      startupProbe:
        exec:
          command:
            - /bin/sh
            - -c
            - wget -q -T 2 -O - http://127.0.0.1:9333/dir/status | grep -q '"DataNodes":\[' && wget -q -T 2 -O /dev/null http://127.0.0.1:8333/healthz
        periodSeconds: 1
        timeoutSeconds: 5
        failureThreshold: 180
      readinessProbe:
        httpGet: {path: /healthz, port: s3}
        periodSeconds: 5
        timeoutSeconds: 5
      livenessProbe:
        httpGet: {path: /healthz, port: s3}
        periodSeconds: 15
        timeoutSeconds: 10
        failureThreshold: 8
      resources:
        {{- toYaml $opts.resources | nindent 8 }}
      securityContext:
        {{- include "zhongjing.containerSecurity" (list . $opts) | nindent 8 }}
      volumeMounts:
        - name: data
          mountPath: /data
        - name: tmp
          mountPath: /tmp
        - name: identities
          mountPath: /etc/zhongjing/s3
          readOnly: true
  volumes:
    - {{- include "zhongjing.emptyDir" (list "tmp" "1Gi") | nindent 6 }}
    {{- if $opts.persistence.enabled }}
    - name: data
      persistentVolumeClaim:
        claimName: {{ include "zhongjing.s3Claim" . }}
    {{- else }}
    - {{- include "zhongjing.emptyDir" (list "data" $opts.persistence.size) | nindent 6 }}
    {{- end }}
    - name: identities
      secret:
        secretName: {{ $secret }}
        defaultMode: 0440
        items:
          - key: s3.json
            path: s3.json
{{- end -}}

{{- define "zhongjing.s3Env" -}}
- name: HOME
  value: /tmp
# Large files would drive its memory beyond the limit.
- name: GOMEMLIMIT
  value: {{ printf "%dMiB" (div (mul (include "zhongjing.bytes" .Values.s3.bundled.resources.limits.memory | int64) 6) 10485760) | quote }}
# Volumes that a bucket grows at a time; writers of different volumes do not wait for each other.
- name: WEED_MASTER_VOLUME_GROWTH_COPY_1
  value: {{ .Values.s3.bundled.volumeGrowth | quote }}
{{- end -}}
