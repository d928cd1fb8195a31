package translate_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

func revoked(name, identity, serial string) revocation.Revocation {
	return revocation.Revocation{Name: name, Identity: identity, Serial: serial}
}

// dial opens a connection as a mesh client.
func dial(t *testing.T, port uint32, leaf envoytest.Leaf) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return tls.Client(conn, &tls.Config{ //nolint:gosec // the server's name is not what is tested
		Certificates: []tls.Certificate{leaf.TLS}, InsecureSkipVerify: true, NextProtos: []string{"istio"}, MinVersion: tls.VersionTLS13})
}

// tellDetails has a denial say in its body what Envoy's access log would.
func tellDetails(t *testing.T, l *listener.Listener) {
	t.Helper()
	for _, c := range l.GetFilterChains() {
		repack(t, last(c).GetTypedConfig(), func(m any) {
			manager, ok := m.(*hcm.HttpConnectionManager)
			if !ok {
				return
			}
			manager.LocalReplyConfig = &hcm.LocalReplyConfig{BodyFormat: &core.SubstitutionFormatString{
				Format: &core.SubstitutionFormatString_TextFormatSource{TextFormatSource: &core.DataSource{Specifier: &core.DataSource_InlineString{
					InlineString: "%RESPONSE_CODE_DETAILS%"}}}}}
		})
	}
}

func TestRevokedIdentitiesAndCertificatesAreDeniedBeforeEveryPolicy(t *testing.T) {
	const id, twin, other = "spiffe://cluster.local/ns/shop/sa/stolen", "spiffe://cluster.local/ns/shop/sa/twin", "spiffe://cluster.local/ns/shop/sa/stolen2"
	ports, ca := envoytest.FreePorts(t, 3), envoytest.NewCA(t)
	server, app := ca.Issue(t, "spiffe://cluster.local/ns/finance/sa/payroll"), startApplication(t, false)
	numbered := func(hex string) envoytest.Leaf {
		n, _ := new(big.Int).SetString(hex, 16)
		return ca.IssueNumbered(t, twin, n)
	}
	list := []revocation.Revocation{
		revoked("all-of-it", id, ""),
		revoked("odd", twin, "abc0ffee123"), revoked("even", twin, "7bc0ffee1234"), revoked("high", twin, "fedcba9876543210fedcba9876543210"),
		revoked("not-its-own", other, "1111"),
	}
	allow := []authz.Policy{{Meta: authz.Meta{Namespace: "finance", Name: "all"}, Action: authz.Allow, Rules: []authz.Rule{{}}}}
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[2]}
	web := workloadListener(t, allow, false, ports[0], ca, server, list...)
	tellDetails(t, web)
	raw, target := tcpWorkload(t, allow, ports[1], false, app, ca, server, list...)
	b.StaticResources.Listeners, b.StaticResources.Clusters = append(b.StaticResources.Listeners, web, raw), append(b.StaticResources.Clusters, target)
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")

	for _, c := range []struct {
		name   string
		leaf   envoytest.Leaf
		denial string
	}{
		{"a revoked identity", ca.Issue(t, id), "bulwark[revoked]-all-of-it"},
		{"another certificate of it", ca.Issue(t, id), "bulwark[revoked]-all-of-it"},
		{"an identity with the same beginning", ca.Issue(t, other), ""},
		{"a revoked certificate, odd", numbered("abc0ffee123"), "bulwark[revoked]-odd"},
		{"a revoked certificate, even", numbered("7bc0ffee1234"), "bulwark[revoked]-even"},
		{"a revoked certificate, high bit", numbered("fedcba9876543210fedcba9876543210"), "bulwark[revoked]-high"},
		{"another certificate of the identity", numbered("abc0ffee124"), ""},
		{"a number revoked of another identity", numbered("1111"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := dial(t, ports[0], c.leaf)
			reader := bufio.NewReader(conn)
			for range 2 { // on one connection
				if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: payroll\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				resp, err := http.ReadResponse(reader, nil)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				if want := c.denial != ""; (resp.StatusCode == http.StatusForbidden) != want || !want && resp.StatusCode != http.StatusOK {
					t.Fatalf("HTTP: answer %d %s", resp.StatusCode, body)
				}
				if c.denial != "" && string(body) != "rbac_access_denied_matched_policy["+c.denial+"]" {
					t.Fatalf("HTTP: denied by %q, want %q", body, c.denial)
				}
			}
			conn = dial(t, ports[1], c.leaf)
			if _, err := io.WriteString(conn, "knock"); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 64)
			n, _ := conn.Read(buf)
			if got := string(buf[:n]) == "knock"; got != (c.denial == "") {
				t.Fatalf("TCP: heard %q", buf[:n])
			}
		})
	}
}
