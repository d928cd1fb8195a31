{{- define "bulwark.image" -}}
{{ .root.Values.image.registry }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "bulwark.labels" -}}
app.kubernetes.io/name: {{ . }}
app.kubernetes.io/part-of: bulwark
{{- end }}

{{- /* What every component's pod has: no privilege, a read-only root, and a token for Citadel. */}}
{{- define "bulwark.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "bulwark.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "bulwark.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: monitoring}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: monitoring}
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /readyz, port: monitoring}
  periodSeconds: 1
  timeoutSeconds: 2
{{- end }}

{{- define "bulwark.citadelTokenMount" -}}
- {name: citadel-token, mountPath: /var/run/secrets/bulwark/citadel, readOnly: true}
{{- end }}

{{- define "bulwark.citadelTokenVolume" -}}
- name: citadel-token
  projected:
    sources:
      - serviceAccountToken: {audience: bulwark.dev/citadel, expirationSeconds: 3600, path: token}
{{- end }}

{{- define "bulwark.scrape" -}}
prometheus.io/scrape: "true"
prometheus.io/port: "15014"
prometheus.io/path: /metrics
{{- end }}

{{- /* Citadel's settings. The check before an installation with Helm is given the same. */}}
{{- define "bulwark.citadelArgs" -}}
- --logLevel={{ .Values.logLevel }}
- --trustDomain={{ .Values.trustDomain }}
- --workloadTTL={{ .Values.citadel.workloadTTL }}
- --secretTTL={{ .Values.citadel.secrets.ttl | default .Values.citadel.workloadTTL }}
- --secretsOptIn={{ .Values.citadel.secrets.optIn }}
- --rotationFraction={{ .Values.citadel.secrets.rotationFraction }}
- --rotationJitter={{ .Values.citadel.secrets.rotationJitter }}
- --rotationMinimum={{ .Values.citadel.secrets.rotationMinimum }}
- --keyType={{ .Values.citadel.keyType }}
- --rootTTL={{ .Values.citadel.rootTTL }}
- --kubeletSync={{ .Values.citadel.kubeletSync }}
{{- with .Values.citadel.upstream }}
- --upstreamSigner={{ .signer }}
- --upstreamRoots={{ .roots }}
{{- end }}
{{- end }}
{{- /* Whether the nodes' CNI plugin redirects: on or off. YAML takes the words for booleans where they are not quoted. */}}
{{- define "bulwark.cni" -}}
{{- if has (toString .Values.cni) (list "off" "false") }}off{{ else }}on{{ end }}
{{- end }}
