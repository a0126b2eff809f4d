{{/*
Environment of containers. Lists are merged by name: what a user gives replaces ours, since a name given twice is
refused by server-side apply.
*/}}
{{- define "zhongjing.mergeEnv" -}}
{{- $ours := index . 0 -}}
{{- $theirs := default list (index . 1) -}}
{{- $names := list -}}
{{- range $theirs -}}{{- $names = append $names .name -}}{{- end -}}
{{- $merged := list -}}
{{- range $ours -}}{{- if not (has .name $names) -}}{{- $merged = append $merged . -}}{{- end -}}{{- end -}}
{{- concat $merged $theirs | toYaml -}}
{{- end -}}

{{/* HOME and the temporary folder: the root file system is read-only. */}}
{{- define "zhongjing.env.folders" -}}
- name: HOME
  value: /home/zhongjing
- name: TMPDIR
  value: /tmp
{{- end -}}

{{/* How to reach the object store. Credentials are a file, so that rotation needs no new pods. */}}
{{- define "zhongjing.env.s3" -}}
- name: AWS_REGION
  value: {{ .Values.s3.region | quote }}
{{- with include "zhongjing.s3Endpoint" . }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with include "zhongjing.s3Secret" . }}
- name: AWS_SHARED_CREDENTIALS_FILE
  value: /etc/zhongjing/s3/credentials
- name: ZHONGJING_S3_SECRET {{- /* named in messages where the store refuses the keys */}}
  value: {{ . | quote }}
{{- end }}
{{- with include "zhongjing.caFile" . }}
- name: AWS_CA_BUNDLE
  value: {{ . }}
{{- end }}
{{- end -}}

{{/* Proxies, in both spellings. What lies inside the cluster is never sent to one. */}}
{{- define "zhongjing.env.proxy" -}}
{{- $proxy := .Values.proxy -}}
{{- if or $proxy.http $proxy.https -}}
{{- $direct := list "localhost" "127.0.0.1" ".svc" ".cluster.local" "$(KUBERNETES_SERVICE_HOST)" -}}
{{- $direct = concat $direct $proxy.noProxy | join "," -}}
{{- range $name, $value := dict "HTTP_PROXY" $proxy.http "HTTPS_PROXY" $proxy.https "NO_PROXY" $direct }}
{{- if $value }}
- name: {{ $name }}
  value: {{ $value | quote }}
- name: {{ lower $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* The model hub. */}}
{{- define "zhongjing.env.hub" -}}
{{- $hub := .Values.hub -}}
{{- with $hub.endpoint }}
- name: HF_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- with $hub.existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $hub.secretKey }}
{{- end }}
{{- end -}}

{{/* Ray's token, from a file that is read again when it changes. */}}
{{- define "zhongjing.env.rayToken" -}}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN_PATH
  value: /etc/zhongjing/ray/auth_token
{{- end -}}
