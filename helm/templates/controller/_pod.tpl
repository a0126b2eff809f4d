{{/* Pod template of the controller. */}}
{{- define "zhongjing.controllerPod" -}}
{{- $opts := .Values.controller -}}
{{- $annotations := dict "checksum/config" (include "zhongjing.release" . | sha256sum) "checksum/service-account" (toJson $opts.serviceAccount | sha256sum) -}}
metadata:
  labels:
    {{- mergeOverwrite (include "zhongjing.podLabels" (list . "controller") | fromYaml) (deepCopy $opts.labels) | toYaml | nindent 4 }}
  annotations:
    {{- mergeOverwrite $annotations (deepCopy .Values.commonAnnotations) (deepCopy $opts.annotations) | toYaml | nindent 4 }}
spec:
  {{- include "zhongjing.pod.common" (dict "root" . "opts" $opts "account" (include "zhongjing.controllerAccount" .) "token" true) | nindent 2 }}
  terminationGracePeriodSeconds: {{ int64 $opts.terminationGracePeriodSeconds }}
  containers:
    - name: controller
      image: {{ include "zhongjing.controllerImage" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      terminationMessagePolicy: FallbackToLogsOnError
      command: [tini, --, python, -m, zhongjing.controller, --config, /etc/zhongjing/release/release.yaml]
      {{- with $opts.args }}
      args:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: http
          containerPort: 8080
      env:
        {{- include "zhongjing.mergeEnv" (list (include "zhongjing.controllerEnv" . | fromYamlArray) $opts.env) | nindent 8 }}
      {{- with $opts.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      startupProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 2
        timeoutSeconds: 3
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 15
        timeoutSeconds: 5
        failureThreshold: 4
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 5
        timeoutSeconds: 5
      resources:
        {{- toYaml $opts.resources | nindent 8 }}
      securityContext:
        {{- include "zhongjing.containerSecurity" (list . $opts) | nindent 8 }}
      volumeMounts:
        - name: release
          mountPath: /etc/zhongjing/release
          readOnly: true
        - name: home
          mountPath: /home/zhongjing
        - name: tmp
          mountPath: /tmp
        {{- include "zhongjing.credentialMounts" (dict "root" . "s3" true "token" true) | nindent 8 }}
        {{- with $opts.volumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: release
      configMap:
        name: {{ include "zhongjing.fullname" . }}-config
    - {{- include "zhongjing.emptyDir" (list "home" "100Mi") | nindent 6 }}
    - {{- include "zhongjing.emptyDir" (list "tmp" "1Gi") | nindent 6 }}
    {{- /* Optional: the controller itself makes them where they are not given. */}}
    {{- include "zhongjing.credentialVolumes" (dict "root" . "s3" true "token" true "optional" true) | nindent 4 }}
    {{- with $opts.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "zhongjing.controllerEnv" -}}
- name: POD_NAME
  valueFrom:
    fieldRef: {fieldPath: metadata.name}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef: {fieldPath: metadata.namespace}
{{ include "zhongjing.env.folders" . }}
{{ include "zhongjing.env.s3" . }}
{{ include "zhongjing.env.rayToken" . }}
{{- with include "zhongjing.env.hub" . }}
{{ . | trim }}
{{- end }}
{{- with include "zhongjing.env.proxy" . }}
{{ . | trim }}
{{- end }}
{{- end -}}
