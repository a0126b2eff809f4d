{{/* A quantity of Kubernetes ("4Gi", "500M") in bytes, as text. */}}
{{- define "zhongjing.bytes" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9.]+" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- $factors := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "P" 1000000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 -}}
{{- if or (not $number) (not (hasKey $factors $unit)) -}}
{{- fail (printf "%q is not a quantity such as 500Mi, 64Gi or 1T" $text) -}}
{{- end -}}
{{- mulf (float64 $number) (float64 (get $factors $unit)) | int64 -}}
{{- end -}}

{{/* The sum of quantities, in whole Mi. Argument: list of quantities; empty ones count nothing. */}}
{{- define "zhongjing.sum" -}}
{{- $sum := 0 -}}
{{- range . -}}{{- if . -}}{{- $sum = add $sum (include "zhongjing.bytes" . | int64) -}}{{- end -}}{{- end -}}
{{- div (add $sum 1048575) 1048576 -}}Mi
{{- end -}}
