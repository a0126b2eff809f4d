{{/* Rules that several policies share. Each is YAML of a list of rules. */}}
{{- define "zhongjing.egress.dns" -}}
- ports:
    {{- range .Values.networkPolicy.dnsPorts }}
    - {port: {{ . }}, protocol: UDP}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end -}}

{{/* The API server has no label to select it by. */}}
{{- define "zhongjing.egress.api" -}}
{{- $api := .Values.networkPolicy.apiServer -}}
- ports:
    {{- range $api.ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with $api.cidrs }}
  to:
    {{- range . }}
    - ipBlock: {cidr: {{ . }}}
    {{- end }}
  {{- end }}
{{- end -}}

{{- define "zhongjing.egress.s3" -}}
{{- if include "zhongjing.s3Bundled" . -}}
- ports:
    - {port: 8333, protocol: TCP}
  to:
    - podSelector:
        matchLabels:
          {{- include "zhongjing.selector" (list . "s3") | nindent 10 }}
{{- else -}}
- ports:
    - {port: {{ include "zhongjing.port" (include "zhongjing.s3Endpoint" . | default "https://s3") }}, protocol: TCP}
{{- end -}}
{{- end -}}

{{/* Port of a URL. */}}
{{- define "zhongjing.port" -}}
{{- $host := (urlParse .).host -}}
{{- $port := regexFind ":[0-9]+$" $host | trimPrefix ":" -}}
{{- if $port -}}{{ $port }}{{- else -}}{{ ternary "80" "443" (hasPrefix "http://" .) }}{{- end -}}
{{- end -}}

{{/* Ports of Ray pods, as a peer. */}}
{{- define "zhongjing.peer.ray" -}}
- podSelector:
    matchLabels:
      app.kubernetes.io/name: zhongjing
      app.kubernetes.io/instance: {{ .Release.Name }}
    matchExpressions:
      - {key: app.kubernetes.io/component, operator: In, values: [ray-head, ray-worker]}
{{- end -}}

{{/* Beyond the cluster: model hub, corpora and proxies, which pods that train need. */}}
{{- define "zhongjing.egress.outside" -}}
{{- $public := .Values.networkPolicy.publicEgress -}}
{{- if $public.enabled }}
- ports:
    {{- range $public.ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  to:
    - ipBlock:
        cidr: 0.0.0.0/0
        {{- with $public.except }}
        except:
          {{- toYaml . | nindent 10 }}
        {{- end }}
{{- end }}
{{- $ports := list -}}
{{- range compact (list .Values.proxy.http .Values.proxy.https .Values.hub.endpoint) -}}
{{- $ports = append $ports (include "zhongjing.port" .) -}}
{{- end -}}
{{- range uniq $ports }}
- ports:
    - {port: {{ . }}, protocol: TCP}
{{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}
