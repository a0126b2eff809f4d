{{/* Rules that several policies share. Each is YAML of a list of rules, and each says where to: a port without an address
would open it towards everything, and publicEgress.except would be void there. */}}
{{- define "zhongjing.egress.dns" -}}
- ports:
    {{- range .Values.networkPolicy.dnsPorts }}
    - {port: {{ . }}, protocol: UDP}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  to:
    {{- toYaml .Values.networkPolicy.dnsTo | nindent 4 }}
    {{- range .Values.networkPolicy.nodeCIDRs }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
{{- end -}}

{{/* The API server has no label to select it by. */}}
{{- define "zhongjing.egress.api" -}}
{{- $api := .Values.networkPolicy.apiServer -}}
- ports:
    {{- range $api.ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  to:
    {{- range $api.cidrs }}
    - ipBlock: {cidr: {{ . | quote }}}
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
{{- include "zhongjing.egress.url" (list . (include "zhongjing.s3Endpoint" . | default (printf "https://s3.%s.amazonaws.com" .Values.s3.region))) -}}
{{- end -}}
{{- end -}}

{{/* Port of a URL. */}}
{{- define "zhongjing.port" -}}
{{- $port := regexFind ":[0-9]+$" (urlParse .).host | trimPrefix ":" -}}
{{- if $port -}}{{ $port }}{{- else -}}{{ ternary "80" "443" (hasPrefix "http://" .) }}{{- end -}}
{{- end -}}

{{/* To the host and port of a URL. Argument: list of root and URL. */}}
{{- define "zhongjing.egress.url" -}}
- ports:
    - {port: {{ include "zhongjing.port" (index . 1) }}, protocol: TCP}
  to:
    {{- include "zhongjing.peers.host" (list (index . 0) (urlParse (index . 1)).hostname) | trim | nindent 4 }}
{{- end -}}

{{/* Where a host is, as peers: as networkPolicy.hosts says; an address is itself, a service its namespace, a bare name this
one; a name of two parts may be a service as well as outside (minio.store, example.com); every other one is outside. Argument: list of root and host. */}}
{{- define "zhongjing.peers.host" -}}
{{- $root := index . 0 -}}
{{- $host := index . 1 -}}
{{- $given := get $root.Values.networkPolicy.hosts $host -}}
{{- if $given -}}
{{- range $given }}
- ipBlock: {cidr: {{ . | quote }}}
{{- end }}
{{- else if contains ":" $host -}}
- ipBlock: {cidr: "{{ $host }}/128"}
{{- else if regexMatch "^[0-9.]+$" $host -}}
- ipBlock: {cidr: {{ $host }}/32}
{{- else if regexMatch "^[^.]+[.][^.]+[.]svc([.]|$)" $host -}}
- namespaceSelector:
    matchLabels: {kubernetes.io/metadata.name: {{ index (splitList "." $host) 1 }}}
{{- else if not (contains "." $host) -}}
- podSelector: {}
{{- else -}}
{{- if regexMatch "^[^.]+[.][^.0-9]+$" $host }}
- namespaceSelector:
    matchLabels: {kubernetes.io/metadata.name: {{ index (splitList "." $host) 1 }}}
{{- end }}
{{- include "zhongjing.peers.public" $root }}
{{- end }}
{{- end -}}

{{/* All addresses but those of publicEgress.except, as peers. */}}
{{- define "zhongjing.peers.public" -}}
{{- $except := .Values.networkPolicy.publicEgress.except -}}
{{- $fours := list -}}
{{- $sixes := list -}}
{{- range $except -}}
{{- if contains ":" . -}}{{- $sixes = append $sixes . -}}{{- else -}}{{- $fours = append $fours . -}}{{- end -}}
{{- end -}}
{{- range $cidr, $inside := dict "0.0.0.0/0" $fours "::/0" $sixes }}
- ipBlock:
    cidr: {{ $cidr | quote }}
    {{- with $inside }}
    except:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end }}
{{- end -}}

{{/* An external Redis, with all its hosts. */}}
{{- define "zhongjing.egress.redis" -}}
{{- range splitList "," .Values.ray.gcsFaultTolerance.redisAddress }}
{{- $url := printf "redis://%s" (regexReplaceAll "^rediss?://" (trim .) "") }}
{{ include "zhongjing.egress.url" (list $ (ternary $url (printf "%s:6379" $url) (regexMatch ":[0-9]+$" $url))) }}
{{- end }}
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
    {{- include "zhongjing.peers.public" . | trim | nindent 4 }}
{{- end }}
{{- range compact (list .Values.proxy.http .Values.proxy.https .Values.hub.endpoint) | uniq }}
{{ include "zhongjing.egress.url" (list $ .) }}
{{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}
