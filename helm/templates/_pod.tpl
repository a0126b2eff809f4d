{{/* What every pod has: identity, security, where it may run. Argument: dict of root, opts, account, token (bool). */}}
{{- define "zhongjing.pod.common" -}}
{{- $opts := .opts -}}
{{- $values := .root.Values -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: {{ default false .token }}
enableServiceLinks: false
{{- with mergeOverwrite (deepCopy $values.podSecurityContext) (deepCopy (default dict $opts.podSecurityContext)) }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $opts.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $opts.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $opts.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $opts.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $opts.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $opts.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $opts.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- end -}}

{{/* securityContext of a container. Argument: list of root and the options of its pod. */}}
{{- define "zhongjing.containerSecurity" -}}
{{- $opts := index . 1 -}}
{{- $context := mergeOverwrite (deepCopy (index . 0).Values.securityContext) (deepCopy (default dict $opts.securityContext)) -}}
{{- with $opts.capabilities -}}
{{- $context = mergeOverwrite $context (dict "capabilities" (dict "add" .)) -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{/* Volumes and mounts of the credentials. Argument: dict of root, s3, token (bools), optional (bool): pods that
     start before the controller has made the secrets. */}}
{{- define "zhongjing.credentialVolumes" -}}
{{- $root := .root -}}
{{- $optional := default false .optional -}}
{{- if .s3 }}
{{- with include "zhongjing.s3Secret" $root }}
- name: s3-credentials
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    {{- if $optional }}
    optional: true
    {{- end }}
    items:
      - key: credentials
        path: credentials
{{- end }}
{{- with $root.Values.s3.ca.configMap }}
- name: s3-ca
  configMap:
    name: {{ . }}
{{- end }}
{{- with $root.Values.s3.ca.secret }}
- name: s3-ca
  secret:
    secretName: {{ . }}
{{- end }}
{{- end }}
{{- if .token }}
- name: ray-token
  secret:
    secretName: {{ include "zhongjing.tokenSecret" $root }}
    defaultMode: 0440
    {{- if $optional }}
    optional: true
    {{- end }}
    items:
      - key: auth_token
        path: auth_token
{{- end }}
{{- end -}}

{{- define "zhongjing.credentialMounts" -}}
{{- $root := .root -}}
{{- if .s3 }}
{{- if include "zhongjing.s3Secret" $root }}
- name: s3-credentials
  mountPath: /etc/zhongjing/s3
  readOnly: true
{{- end }}
{{- if include "zhongjing.caFile" $root }}
- name: s3-ca
  mountPath: /etc/zhongjing/ca
  readOnly: true
{{- end }}
{{- end }}
{{- if .token }}
- name: ray-token
  mountPath: /etc/zhongjing/ray
  readOnly: true
{{- end }}
{{- end -}}
