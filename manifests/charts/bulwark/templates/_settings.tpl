{{- /* The settings of a tree of values, one to a line by its path: {prefix, values}. */}}
{{- define "bulwark.flat" -}}
{{- $prefix := .prefix }}
{{- range $key, $value := .values }}
{{- if kindIs "map" $value }}
{{- include "bulwark.flat" (dict "prefix" (printf "%s%s." $prefix $key) "values" $value) }}
{{- else }}
{{ printf "%s%s" $prefix $key | quote }}: {{ toString $value | quote }}
{{- end }}
{{- end }}
{{- end }}
