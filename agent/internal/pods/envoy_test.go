package pods_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/agent/internal/pods"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
)

// bootstrap is an Envoy whose one listener demands mutual TLS with what SDS on the pod's socket gives.
const bootstrap = `
node: {id: test, cluster: test}
static_resources:
  clusters:
  - name: bulwark-agent
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: bulwark-agent
      endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: %s}}}}]}]
  listeners:
  - name: tls
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: test
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]}
      transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          disable_stateless_session_resumption: true
          common_tls_context:
            tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
            tls_certificate_sds_secret_configs: [{name: "%s", sds_config: %s}]
            validation_context_sds_secret_config: {name: "%s", sds_config: %s}
`

func envoyBinary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("BULWARK_ENVOY"); path != "" {
		return path
	}
	path, err := exec.LookPath("envoy")
	if err != nil {
		t.Skip("no Envoy: BULWARK_ENVOY is not set and there is none on the PATH")
	}
	return path
}

// runEnvoy starts an Envoy on the pod's socket and returns the address of its listener.
func runEnvoy(t *testing.T, v pods.Volume, apiType, certificate, roots string) string {
	t.Helper()
	binary := envoyBinary(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().(*net.TCPAddr)
	l.Close()
	source := fmt.Sprintf("{resource_api_version: V3, api_config_source: {api_type: %s, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: bulwark-agent}}]}}", apiType)
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, bootstrap, short(t, v), address.Port, certificate, source, roots, source), 0o600); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	cmd := exec.Command(binary, "-c", file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return address.String()
}

func TestEnvoyServesWithTheAgentsCertificateThroughRenewalAndRestart(t *testing.T) {
	for name, c := range map[string]struct{ api, certificate, roots string }{
		"DELTA_GRPC":                   {"DELTA_GRPC", mesh.WorkloadSecretName, mesh.RootCASecretName},
		"GRPC":                         {"GRPC", mesh.WorkloadSecretName, mesh.RootCASecretName},
		"DELTA_GRPC by SPIFFE's names": {"DELTA_GRPC", "spiffe://cluster.local/ns/finance/sa/payroll", "spiffe://cluster.local"},
		"GRPC by SPIFFE's names":       {"GRPC", "spiffe://cluster.local/ns/finance/sa/payroll", "spiffe://cluster.local"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			v := n.volume("p1", "payroll")
			n.publish(v, "token1")
			address := runEnvoy(t, v, c.api, c.certificate, c.roots)
			payroll := n.ca.ID("finance", "payroll")
			client := mtls.Client(n.ca.SVID(n.ca.ID("finance", "web"), time.Now().Add(time.Hour)), n.bundle, mtls.OneOf(payroll))
			var failure error
			serial := func() string {
				conn, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Second}, "tcp", address, client)
				if err != nil {
					failure = err
					return ""
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(time.Second))
				if _, failure = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: payroll\r\n\r\n"); failure != nil {
					return ""
				}
				answer := make([]byte, len("HTTP/1.1 200"))
				if _, failure = io.ReadFull(conn, answer); failure != nil {
					return ""
				}
				return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
			}
			var first, second string
			until(t, "Envoy serves", func() bool { first = serial(); return first != "" })

			until(t, "the agent knows what Envoy has taken", func() bool {
				trusts, certificates := 0, 0
				for _, h := range n.registry.Pods()[0].Clients() { // Envoy has a stream for each secret
					if h.Trusts {
						trusts++
					}
					certificates += len(h.Issuers)
				}
				return trusts == 1 && certificates == 1
			})

			n.registry.Pods()[0].Renew()
			until(t, "Envoy serves the renewed certificate", func() bool {
				second = serial()
				if second == "" {
					t.Fatalf("a connection failed while the certificate was renewed: %v", failure)
				}
				return second != first
			})

			n.registry.Close()
			for range 20 {
				if serial() != second {
					t.Fatalf("Envoy lost its certificate with the agent: %v", failure)
				}
			}
			n.start()
			if err := n.registry.Restore(); err != nil {
				t.Fatal(err)
			}
			n.publish(v, "token1")
			until(t, "Envoy serves the certificate of the new agent", func() bool {
				s := serial()
				if s == "" {
					t.Fatalf("a connection failed while the agent was restarted: %v", failure)
				}
				return s != second
			})
		})
	}
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within 30 seconds: %s", what)
}
