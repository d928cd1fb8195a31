package dataplane

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"text/template"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/tools/bench/stage"
	"github.com/bulwark-mesh/bulwark/tools/bench/traffic"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/ca"
)

// What somebody would write by hand for mutual TLS between two Envoys, and no more: TLS 1.3, the peer's name checked,
// one route. No authorization, no logs. Sessions are not resumed, as in Bulwark: of a resumed connection Envoy's RBAC takes no peer for proven.
var (
	minimalClient = config(`
  listeners:
{{if .Redirected}}  - address: {socket_address: {address: 0.0.0.0, port_value: {{.OutboundPort}}}}
    listener_filters: [{name: original_dst, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}]
    filter_chains:
{{range .Ports}}    - filter_chain_match: {destination_port: {{.Service}}}
      filters: [{{template "filter" .}}]
{{end}}{{else}}{{range .Ports}}  - address: {socket_address: {address: 127.0.0.1, port_value: {{.Client}}}}
    filter_chains: [{filters: [{{template "filter" .}}]}]
{{end}}{{end}}  clusters:
{{range .Ports}}  - name: "{{.Application}}"
    load_assignment: {cluster_name: "{{.Application}}", endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {
      address: {{$.ServerIP}}, port_value: {{if $.Redirected}}{{.Application}}{{else}}{{$.InboundPort}}{{end}}}}}}]}]}
    {{template "options" .}}
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: "{{.Application}}"
        max_session_keys: 0
        common_tls_context: {{template "tls" $}}
{{end}}`)
	minimalServer = config(`
  listeners:
  - address: {socket_address: {address: 0.0.0.0, port_value: {{.InboundPort}}}}
    listener_filters: [{name: tls_inspector, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]
    filter_chains:
{{range .Ports}}    - filter_chain_match: {server_names: ["{{.Application}}"]}
      transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          disable_stateless_session_resumption: true
          disable_stateful_session_resumption: true
          common_tls_context: {{template "tls" $}}
      filters: [{{template "filter" .}}]
{{end}}  clusters:
{{range .Ports}}  - name: "{{.Application}}"
    load_assignment: {cluster_name: "{{.Application}}", endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: {{.Application}}}}}}]}]}
    {{template "options" .}}
{{end}}`)
)

// parts of both. A request goes on in the protocol that it came in.
const parts = `{{define "filter"}}{{if .HTTP}}{name: http, typed_config: {
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
          stat_prefix: http, upgrade_configs: [{upgrade_type: websocket}],
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: "{{.Application}}", timeout: 0s}}]}]},
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}{{else}}{name: tcp, typed_config: {
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: "{{.Application}}"}}{{end}}{{end}}
{{define "options"}}typed_extension_protocol_options: { {{- if .HTTP}}envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {
      "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
      use_downstream_protocol_config: {http_protocol_options: {}, http2_protocol_options: {}}}{{end -}} }{{end}}`

const tlsContext = `{{define "tls"}}{
          tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3},
          tls_certificates: [{certificate_chain: {filename: {{.Dir}}/cert.pem}, private_key: {filename: {{.Dir}}/key.pem}}],
          validation_context: {
            trusted_ca: {filename: {{.Dir}}/root.pem},
            match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: {{.Peer}}}}]}}{{end}}`

func config(static string) *template.Template {
	return template.Must(template.Must(template.New("config").Parse(tlsContext + parts)).Parse("static_resources:" + static))
}

// minimalListener is what the two Envoys have for one port of the application. Clients say in the name of the server which they want, since
// redirection leaves the server's Envoy one port.
type minimalListener struct {
	Application, Service, Client int // ports; that of the client's own Envoy where nothing is redirected
	HTTP                         bool
}

func minimalListeners() (out []minimalListener) {
	for _, p := range traffic.Ports {
		out = append(out, minimalListener{p.Number, p.Service, minimalPorts + p.Number, p.HTTP})
	}
	return out
}

// minimal writes the configuration and the certificates of one side, and returns the arguments of its Envoy. Redirected are connections that the kernel brings to it.
func minimal(dir string, t *template.Template, redirected bool, authority *ca.CA, own *x509svid.SVID, peer string) ([]string, error) {
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("encoding the key of %s: %w", own.ID, err)
	}
	var text bytes.Buffer
	err = t.Execute(&text, map[string]any{"Dir": dir, "Peer": "spiffe://" + mesh.DefaultTrustDomain + "/ns/" + stage.Namespace + "/sa/" + peer,
		"ServerIP": serverIP, "InboundPort": mesh.InboundPort, "OutboundPort": mesh.OutboundPort, "Redirected": redirected, "Ports": minimalListeners()})
	if err != nil {
		return nil, fmt.Errorf("minimal configuration: %w", err)
	}
	for name, content := range map[string][]byte{
		"cert.pem": encode(own.Certificates), "root.pem": encode(authority.Bundle.X509Authorities()),
		"key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), "envoy.yaml": text.Bytes(),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return nil, fmt.Errorf("minimal configuration: %w", err)
		}
		if err := os.Chown(path, mesh.ProxyUID, mesh.ProxyGID); err != nil {
			return nil, fmt.Errorf("minimal configuration: %w", err)
		}
	}
	return []string{"--config-path", filepath.Join(dir, "envoy.yaml"), "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"}, nil
}
