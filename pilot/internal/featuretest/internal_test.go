package featuretest

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// member is a server of a mesh that is outside of the cluster: a proxy of its own, as it were, with an identity of a CA. It answers with whom it has seen, and
// returns its port.
func member(t *testing.T, ca *envoytest.CA, id string, clients *x509.CertPool) int {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, id).TLS}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients,
		MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s seen as %s", r.TLS.PeerCertificates[0].URIs[0], r.TLS.ServerName)
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// A proxy speaks mutual TLS of the mesh with servers of it that are outside of the cluster, and only with one that has an identity which the ServiceEntry names, or a rule
// instead; never with one that is revoked, and never in plaintext.
func TestServersOfTheMeshOutsideProveTheirIdentity(t *testing.T) {
	for _, workload := range []string{"finance/payroll-1", "finance/by-secret"} {
		t.Run(workload, func(t *testing.T) { membersAre(t, workload) })
	}
}

func membersAre(t *testing.T, workload string) {
	o := newOutside(t)
	o.add(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: by-secret, namespace: finance, labels: {security.istio.io/tlsMode: istio}, annotations: {bulwark.dev/identity: secret}}\n"+
		"spec: {serviceAccountName: payroll, nodeName: node-1, containers: [{name: app, image: x}]}\nstatus: {phase: Running, podIP: 10.0.0.78}")
	mesh := envoytest.NewCA(t)
	const vm, other, partner = "spiffe://cluster.local/ns/finance/sa/vm", "spiffe://cluster.local/ns/finance/sa/other", "spiffe://partner.example/vm"
	const refused = "CERTIFICATE_VERIFY_FAILED"
	const seen = "spiffe://cluster.local/ns/finance/sa/payroll seen as outbound_.80_._."
	named := func(id string) string { return ", location: MESH_INTERNAL, subjectAltNames: [" + id + "]" }
	account := ", location: MESH_INTERNAL"
	cases := []struct{ host, more, way, id, want string }{
		{"vm.example", named(vm), "", vm, seen + "vm.example"},
		{"account.example", account, "", vm, seen},
		{"other.example", named(vm), "", other, refused},
		{"other-account.example", account, "", other, refused},
		{"partner.example", named(partner), "", partner, seen},
		{"ruled.example", named(vm), "mode: ISTIO_MUTUAL, subjectAltNames: [" + other + "]", other, seen},
		{"misruled.example", named(vm), "mode: ISTIO_MUTUAL, subjectAltNames: [" + other + "]", vm, refused},
		{"same.example", named(vm), "mode: ISTIO_MUTUAL", vm, seen},
		{"external.example", "", "mode: ISTIO_MUTUAL, subjectAltNames: [" + vm + "]", vm, seen},
		{"nobody.example", "", "mode: ISTIO_MUTUAL", vm, "no healthy upstream"},
		{"plain.example", named(vm), "mode: DISABLE", vm, "Client sent an HTTP request to an HTTPS server"},
		{"broken.example", named(vm), "mode: SIMPLE, insecureSkipVerify: true", vm, "no healthy upstream"},
	}
	for _, c := range cases {
		port := member(t, mesh, c.id, mesh.Pool())
		if c.more == account {
			for _, e := range o.add(t, fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: %[1]s, namespace: finance}\nspec: {hosts: [%[1]s], resolution: STATIC, location: MESH_INTERNAL, "+
				"endpoints: [{address: 203.0.113.1, serviceAccount: vm}], ports: [{number: 80, name: http, protocol: HTTP, targetPort: %[2]d}]}", c.host, port)) {
				e.Object.(*registry.ServiceEntry).Endpoints[0].Address = "127.0.0.1"
			}
		} else {
			o.entry(t, c.host, "number: 80, name: http, protocol: HTTP", c.more, port)
		}
		if c.way != "" {
			o.add(t, rule(c.host, c.way))
		}
	}
	o.entry(t, "tcp.example", "number: 5432, name: tcp, protocol: TCP", named(vm)+", addresses: [203.0.113.7]", member(t, mesh, vm, mesh.Pool()))
	stranger := envoytest.NewCA(t)
	o.entry(t, "stranger.example", "number: 80, name: http, protocol: HTTP", named(vm), member(t, stranger, vm, mesh.Pool()))
	p := newPilot(t, o.events)
	admin := startIn(t, mesh, p, workload, true, nil)
	at := listenerAt(t, admin, "0.0.0.0_80")
	for _, c := range cases {
		if code, got := ask(t, at, c.host, nil); !strings.Contains(got, c.want) || (code == http.StatusOK) != strings.HasPrefix(c.want, "spiffe://") {
			t.Errorf("%s, %s: %d %s, want %s", c.host, c.way, code, got, c.want)
		}
	}
	if code, got := ask(t, at, "stranger.example", nil); code == http.StatusOK || !strings.Contains(got, refused) {
		t.Errorf("a server of another mesh: %d %s", code, got)
	}
	if code, got := ask(t, listenerAt(t, admin, "203.0.113.7_5432"), "whoever", nil); code != http.StatusOK || !strings.Contains(got, "seen as outbound_.5432_._.tcp.example") {
		t.Errorf("at its address: %d %s", code, got)
	}

	p.apply(t, []registry.Event{{Kind: registry.Revocations, ID: "r", Object: &registry.Revocation{ID: "r", Revocation: revocation.Revocation{Name: "r", Identity: vm}}}})
	code, got := 0, ""
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if code, got = ask(t, at, "vm.example", nil); code != http.StatusOK {
			break
		}
	}
	if code == http.StatusOK || !strings.Contains(got, refused) {
		t.Errorf("a server that is revoked: %d %s", code, got)
	}
}
