package translate_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/telemetry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// TestConnectionsAreCountedUnderProvenNames has clients of the mesh and strangers, who write what they like into a certificate of their
// own, connect to a TCP port: what is counted has the names of the former.
func TestConnectionsAreCountedUnderProvenNames(t *testing.T) {
	const friend, claimed = "spiffe://cluster.local/ns/shop/sa/friend", "spiffe://cluster.local/ns/shop/sa/claimed"
	ports, ca := envoytest.FreePorts(t, 2), envoytest.NewCA(t)
	app := startApplication(t, false)
	w := &compile.Workload{Class: compile.Class{Namespace: "finance"}, Identity: "spiffe://cluster.local/ns/finance/sa/payroll",
		Other: compile.InboundPort{Mode: authz.Strict, Protocol: protocol.TCP},
		Ports: []compile.InboundPort{{Number: ports[0], Protocol: protocol.TCP, Mode: authz.Strict, ServiceName: "ledger"}}}
	counting := map[string][]*accesslog.AccessLog{} // the loggers of statistics, by chain
	for _, c := range translate.InboundListener(settings, w).GetFilterChains() {
		repack(t, last(c).GetTypedConfig(), func(m any) {
			if f, ok := m.(*tcpproxy.TcpProxy); ok {
				for _, log := range f.GetAccessLog() {
					if log.GetName() == "envoy.access_loggers.stats" {
						counting[c.GetName()] = append(counting[c.GetName()], log)
					}
				}
			}
		})
	}
	l := inboundOn(t, w, ports[0])
	for _, c := range l.GetFilterChains() {
		if c.GetTransportSocket() != nil {
			staticCertificates(t, c, ca, ca.Issue(t, "spiffe://cluster.local/ns/finance/sa/payroll"))
		}
		repack(t, last(c).GetTypedConfig(), func(m any) {
			if f, ok := m.(*tcpproxy.TcpProxy); ok {
				f.AccessLog = counting[c.GetName()]
			}
		})
	}
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[1]}
	b.StaticResources.Listeners, b.StaticResources.Clusters = append(b.StaticResources.Listeners, l), append(b.StaticResources.Clusters, staticCluster(applicationBehind(ports[0]), app.port))
	for _, name := range []string{telemetry.EnvWorkload, telemetry.EnvNamespace, telemetry.EnvCanonical, telemetry.EnvRevision, telemetry.EnvPrincipal, telemetry.EnvCluster} {
		t.Setenv(name, "set-by-injection")
	}
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")

	visit := func(leaf envoytest.Leaf) {
		raw, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0]))
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
		conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"istio-opaque"}, MinVersion: tls.VersionTLS13, //nolint:gosec // the server's name is not what is tested
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &leaf.TLS, nil }})
		_, _ = io.WriteString(conn, "knock")
		_, _ = io.ReadFull(conn, make([]byte, 5))
	}
	stranger := envoytest.NewCA(t)
	visit(stranger.Issue(t, claimed))
	visit(ca.IssueChanged(t, claimed, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }))
	visit(ca.Issue(t, "spiffe://elsewhere.example/ns/shop/sa/claimed"))
	visit(ca.Issue(t, friend))

	var text string
	until(t, "the counters of a proven client", func() bool {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/stats/prometheus?filter=istio", ports[1]))
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		text = string(body)
		return err == nil && strings.Contains(text, "tcp_connections_closed_total{") && strings.Contains(text, friend)
	})
	if strings.Contains(text, "claimed") {
		t.Errorf("a name that nobody has proven is a label:\n%s", text)
	}
	if want := `s="m|ledger|`; !strings.Contains(text, want) {
		t.Errorf("no label %s in\n%s", want, text)
	}
}
