package featuretest

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// outside is what is outside of the mesh in a test: servers on this machine, for which ServiceEntries have other addresses.
type outside struct {
	ca     *envoytest.CA
	roots  string // file of its root
	events []registry.Event
}

func newOutside(t *testing.T) *outside {
	t.Helper()
	o := &outside{ca: envoytest.NewCA(t), roots: filepath.Join(t.TempDir(), "ca.pem")}
	if err := os.WriteFile(o.roots, o.ca.Root, 0o600); err != nil {
		t.Fatal(err)
	}
	world, err := os.ReadFile("testdata/world.yaml")
	if err != nil {
		t.Fatal(err)
	}
	o.add(t, string(world))
	return o
}

func (o *outside) add(t *testing.T, text string) []registry.Event {
	t.Helper()
	events, err := fixture.Events([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	o.events = append(o.events, events...)
	return events
}

// entry names a host whose server is at a port of this machine, which no ServiceEntry may say.
func (o *outside) entry(t *testing.T, host, port, more string, server int) {
	t.Helper()
	resolution := "STATIC, endpoints: [{address: 203.0.113.1}]"
	if strings.HasPrefix(host, "*") {
		resolution = "NONE"
	}
	name := strings.NewReplacer("*", "x", ".", "-").Replace(host) + fmt.Sprint(server)
	for _, e := range o.add(t, fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: %s, namespace: finance}\n"+
		"spec: {hosts: [%q], resolution: %s, ports: [{%s}]%s}", name, host, resolution, port, more)) {
		entry := e.Object.(*registry.ServiceEntry)
		if len(entry.Problems) > 0 {
			t.Fatal(entry.Problems)
		}
		entry.Resolution, entry.Endpoints, entry.Ports[0].Target = registry.Static, []registry.EntryEndpoint{{Address: "127.0.0.1", Weight: 1}}, uint32(server)
		if strings.HasPrefix(host, "found.") {
			entry.Resolution, entry.Endpoints[0].Address = registry.DNS, "localhost"
		}
		if strings.HasPrefix(host, "found.robin.") {
			entry.Resolution = registry.RoundRobin
		}
	}
}

// mutual is how a rule says that proxies show a certificate of spiffe://partner.example/client, from files.
func (o *outside) mutual(t *testing.T) string {
	t.Helper()
	client := o.ca.Issue(t, "spiffe://partner.example/client")
	cert, key := filepath.Join(filepath.Dir(o.roots), "cert.pem"), filepath.Join(filepath.Dir(o.roots), "key.pem")
	for name, text := range map[string][]byte{cert: client.Cert, key: client.Key} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("mode: MUTUAL, caCertificates: %s, clientCertificate: %s, privateKey: %s", o.roots, cert, key)
}

func rule(host, way string) string {
	return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: %q, namespace: finance}\nspec: {host: %q, trafficPolicy: {tls: {%s}}}",
		strings.NewReplacer("*", "x", ".", "-").Replace(host), host, way)
}

// server answers requests with what it has seen of them, over TLS by a certificate of the names, or in plaintext without any.
func (o *outside) server(t *testing.T, ca *envoytest.CA, clients *x509.CertPool, names ...string) int {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, client := "plaintext", ""
		if r.TLS != nil {
			name = r.TLS.ServerName
			if len(r.TLS.PeerCertificates) > 0 {
				client = fmt.Sprint(r.TLS.PeerCertificates[0].URIs)
			}
		}
		fmt.Fprintf(w, "%s %s for %s, asked for as %s by %s", r.Proto, r.URL.Path, r.Host, name, client)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetHTTP2(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	if len(names) > 0 {
		leaf := ca.IssueChanged(t, "spiffe://none/ns/a/sa/b", func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, names })
		s.TLS = &tls.Config{Certificates: []tls.Certificate{leaf.TLS}, NextProtos: []string{"h2", "http/1.1"}}
		if clients != nil {
			s.TLS.ClientAuth, s.TLS.ClientCAs = tls.RequireAndVerifyClientCert, clients
		}
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port
}

// listenerAt is where an Envoy of a test has a listener.
func listenerAt(t *testing.T, admin uint32, name string) string {
	t.Helper()
	var all []byte
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		all = envoytest.Admin(t, admin, "/listeners")
		if found := regexp.MustCompile(regexp.QuoteMeta(name) + `::(127\.0\.0\.1:\d+)`).FindSubmatch(all); found != nil {
			return string(found[1])
		}
	}
	t.Fatalf("no listener %s in %s", name, all)
	return ""
}

// ask asks for a host's /pay at an address, and returns the status and the body.
func ask(t *testing.T, address, host string, protocols *http.Protocols) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/pay", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	transport := &http.Transport{DisableKeepAlives: true, Protocols: protocols}
	resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// A proxy speaks TLS with a host outside of the mesh on behalf of its client, and only with a server whose certificate has the host's name, or those that a rule asks
// for, and is vouched for by the authority that the rule names.
func TestServersOutsideProveTheirNames(t *testing.T) {
	o := newOutside(t)
	stranger := envoytest.NewCA(t)
	simple := "mode: SIMPLE, caCertificates: " + o.roots
	const refused = "CERTIFICATE_VERIFY_FAILED"
	cases := []struct {
		host, as string // as: how a client names it
		way      string
		server   int
		want     string
	}{
		{"good.example", "", simple, o.server(t, o.ca, nil, "good.example"), "HTTP/1.1 /pay for good.example, asked for as good.example by "},
		{"good.example", "GOOD.example.:80", simple, 0, "HTTP/1.1 /pay for GOOD.example.:80, asked for as good.example by "},
		{"other-name.example", "", simple, o.server(t, o.ca, nil, "good.example"), refused},
		{"other-ca.example", "", simple, o.server(t, stranger, nil, "other-ca.example"), refused},
		{"public.example", "", "mode: SIMPLE", o.server(t, o.ca, nil, "public.example"), refused},
		{"named.example", "", simple + ", subjectAltNames: [alt.example]", o.server(t, o.ca, nil, "alt.example"), "asked for as named.example"},
		{"misnamed.example", "", simple + ", subjectAltNames: [alt.example]", o.server(t, o.ca, nil, "misnamed.example"), refused},
		{"sni.example", "", simple + ", sni: front.example", o.server(t, o.ca, nil, "sni.example"), "asked for as front.example"},
		{"*.wild.example", "a.wild.example", simple, o.server(t, o.ca, nil, "a.wild.example"), "asked for as a.wild.example"},
		{"*.wild.example", "b.wild.example", simple, 0, refused},
		{"mutual.example", "", o.mutual(t),
			o.server(t, o.ca, o.ca.Pool(), "mutual.example"), "by [spiffe://partner.example/client]"},
		{"demanding.example", "", simple, o.server(t, o.ca, o.ca.Pool(), "demanding.example"), "upstream connect error"},
		{"found.by-dns.example", "", simple, o.server(t, o.ca, nil, "found.by-dns.example"), "asked for as found.by-dns.example"},
		{"found.robin.example", "", simple, o.server(t, o.ca, nil, "found.robin.example"), "asked for as found.robin.example"},
		{"found.other.example", "", simple, o.server(t, o.ca, nil, "localhost"), refused},
		{"disabled.example", "", "mode: DISABLE", o.server(t, nil, nil), "asked for as plaintext"},
		{"insecure.example", "", simple + ", insecureSkipVerify: true", o.server(t, o.ca, nil, "insecure.example"), "no healthy upstream"},
		{"plain.example", "", "", o.server(t, nil, nil), "asked for as plaintext"},
	}
	for _, c := range cases {
		if c.server == 0 {
			continue
		}
		o.entry(t, c.host, "number: 80, name: http, protocol: HTTP", "", c.server)
		if c.way != "" {
			o.add(t, rule(c.host, c.way))
		}
	}
	o.entry(t, "grpc.example", "number: 81, name: grpc, protocol: GRPC", "", o.server(t, o.ca, nil, "grpc.example"))
	o.add(t, rule("grpc.example", simple))
	admin := start(t, newPilot(t, o.events), "finance/payroll-1", true)
	at := listenerAt(t, admin, "0.0.0.0_80")
	for _, c := range cases {
		if c.as == "" {
			c.as = c.host
		}
		code, got := ask(t, at, c.as, nil)
		for end := time.Now().Add(10 * time.Second); strings.HasPrefix(c.host, "found.") && strings.Contains(got, "no healthy upstream") && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			code, got = ask(t, at, c.as, nil) // the name is looked up
		}
		served := strings.Contains(c.want, "asked for") || strings.HasPrefix(c.want, "by ")
		if !strings.Contains(got, c.want) || (code == http.StatusOK) != served {
			t.Errorf("%s, %s: %d %s, want %s", c.as, c.way, code, got, c.want)
		}
	}
	for address, host := range map[string]string{at: "good.example", listenerAt(t, admin, "0.0.0.0_81"): "grpc.example"} {
		if code, got := ask(t, address, host, h2c()); code != http.StatusOK || !strings.HasPrefix(got, "HTTP/2.0 /pay for "+host) {
			t.Errorf("over HTTP/2: %d %s", code, got)
		}
	}
	if code, got := ask(t, at, "nobody.example", nil); code == http.StatusOK {
		t.Errorf("a host that nothing names: %d %s", code, got)
	}
}

// Clients' own TLS goes on to whom they ask for, byte for byte, and a rule does not put another TLS around it. At an address that is a host's, its connections are
// known without a name, and those that a rule has secured prove it as requests do.
func TestConnectionsOutsideGoWhereTheirNameOrAddressSays(t *testing.T) {
	o := newOutside(t)
	simple := "mode: SIMPLE, caCertificates: " + o.roots
	o.entry(t, "tls.example", "number: 443, name: https, protocol: HTTPS", "", o.server(t, o.ca, nil, "tls.example"))
	o.add(t, rule("tls.example", simple))
	o.entry(t, "tcp.example", "number: 5432, name: tcp, protocol: TCP", ", addresses: [203.0.113.7]", o.server(t, o.ca, nil, "tcp.example"))
	o.add(t, rule("tcp.example", simple))
	o.entry(t, "bad.example", "number: 5432, name: tcp, protocol: TCP", ", addresses: [203.0.113.8]", o.server(t, o.ca, nil, "tcp.example"))
	o.add(t, rule("bad.example", simple))
	o.entry(t, "http.example", "number: 8080, name: http, protocol: HTTP", ", addresses: [203.0.113.9]", o.server(t, o.ca, nil, "http.example"))
	o.add(t, rule("http.example", simple))
	admin := start(t, newPilot(t, o.events), "finance/payroll-1", true)

	for name, taken := range map[string]bool{"tls.example": true, "other.example": false} {
		conn, err := tls.Dial("tcp", listenerAt(t, admin, "0.0.0.0_443"), &tls.Config{ServerName: name, RootCAs: o.ca.Pool()})
		if (err == nil) != taken {
			t.Errorf("TLS with %s: %v", name, err)
		}
		if err == nil {
			_ = conn.Close()
		}
	}
	if code, got := ask(t, listenerAt(t, admin, "203.0.113.7_5432"), "whoever", nil); code != http.StatusOK || !strings.Contains(got, "for whoever, asked for as tcp.example") {
		t.Errorf("at the host's address: %d %s", code, got)
	}
	conn := dial(t, listenerAt(t, admin, "203.0.113.8_5432"))
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(conn); len(got) > 0 {
		t.Errorf("a server that is another: %q", got)
	}
	if code, got := ask(t, listenerAt(t, admin, "203.0.113.9_8080"), "10.0.0.1", nil); code != http.StatusOK || !strings.Contains(got, "for 10.0.0.1, asked for as http.example") {
		t.Errorf("requests at the host's address: %d %s", code, got)
	}
}

// A rule whose files a proxy does not have has it speak with nobody, and never as it did before.
func TestTLSThatCannotBeHadIsNotPlaintext(t *testing.T) {
	o := newOutside(t)
	o.entry(t, "a.example", "number: 80, name: http, protocol: HTTP", "", o.server(t, nil, nil))
	p := newPilot(t, o.events)
	at := listenerAt(t, start(t, p, "finance/payroll-1", true), "0.0.0.0_80")
	if code, got := ask(t, at, "a.example", nil); code != http.StatusOK {
		t.Fatalf("without a rule: %d %s", code, got)
	}
	p.apply(t, o.add(t, rule("a.example", "mode: SIMPLE, caCertificates: /no/such/file")))
	code, got := 0, ""
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if code, got = ask(t, at, "a.example", nil); code != http.StatusOK {
			break
		}
	}
	for range 20 {
		if code != http.StatusServiceUnavailable {
			t.Fatalf("with it: %d %s", code, got)
		}
		code, got = ask(t, at, "a.example", nil)
	}
}

// Whom a Sidecar keeps from what has no name reaches what it may know by a name, and hears of the rest that it is out of reach: by Host or server name, at ports that some
// name has and at others. Names that are not among the hosts of its egress are no names to it.
func TestTheConfinedReachOnlyWhatHasAName(t *testing.T) {
	o := newOutside(t)
	o.entry(t, "good.example", "number: 80, name: http, protocol: HTTP", "", o.server(t, nil, nil))
	o.entry(t, "hidden.example", "number: 80, name: http, protocol: HTTP", "", o.server(t, nil, nil))
	o.entry(t, "tls.example", "number: 443, name: https, protocol: HTTPS", "", o.server(t, o.ca, nil, "tls.example"))
	p := newPilot(t, o.events)
	admin := start(t, p, "finance/payroll-1", true)
	at := listenerAt(t, admin, "0.0.0.0_80")
	if code, got := ask(t, at, "hidden.example", nil); code != http.StatusOK {
		t.Fatalf("without a Sidecar: %d %s", code, got)
	}
	const confined = `
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: confined, namespace: finance}
spec:
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
  egress: [{hosts: ["*/*.svc.cluster.local", "./good.example", "./tls.example"]}]`
	p.apply(t, o.add(t, confined))
	refused := func(at, host string, protocols *http.Protocols) {
		t.Helper()
		code, got := 0, ""
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if code, got = ask(t, at, host, protocols); code == http.StatusForbidden {
				break
			}
		}
		if code != http.StatusForbidden || !strings.Contains(got, host+" (") || !strings.Contains(got, "is out of reach of ") {
			t.Errorf("%s at %s: %d %s", host, at, code, got)
		}
	}
	refused(at, "hidden.example", nil)
	refused(at, "hidden.example", h2c())
	refused(at, "nobody.example", nil)
	refused(listenerAt(t, admin, "virtualOutbound"), "nobody.example", nil)
	if code, got := ask(t, at, "good.example", nil); code != http.StatusOK || !strings.Contains(got, "for good.example") {
		t.Errorf("what has a name: %d %s", code, got)
	}
	for name, taken := range map[string]bool{"tls.example": true, "other.example": false} {
		conn, err := tls.Dial("tcp", listenerAt(t, admin, "0.0.0.0_443"), &tls.Config{ServerName: name, RootCAs: o.ca.Pool(), InsecureSkipVerify: !taken}) //nolint:gosec // nobody is to be there
		if (err == nil) != taken {
			t.Errorf("TLS with %s: %v", name, err)
		}
		if err == nil {
			_ = conn.Close()
		}
	}
	served := func(what, host string) {
		t.Helper()
		code, got := 0, ""
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if code, got = ask(t, at, host, nil); code == http.StatusOK {
				return
			}
		}
		t.Fatalf("%s: %d %s", what, code, got)
	}
	for what, spec := range map[string]string{
		"as the Sidecar names it, too": `outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress: [{hosts: ["*/*"]}]`,
		"when it is confined no more":  `outboundTrafficPolicy: {mode: ALLOW_ANY}, egress: [{hosts: ["*/*"]}]`,
	} {
		p.apply(t, o.add(t, confined))
		refused(at, "hidden.example", nil)
		p.apply(t, o.add(t, "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: confined, namespace: finance}\nspec: {"+spec+"}"))
		served(what, "hidden.example")
	}
}

// A namespace of which nothing was said has what its first ServiceEntry names as soon as it comes.
func TestTheFirstNameOfANamespaceIsKnown(t *testing.T) {
	o := newOutside(t)
	p := newPilot(t, o.events)
	admin := start(t, p, "finance/payroll-1", true)
	before := len(o.events)
	o.entry(t, "first.example", "number: 80, name: http, protocol: HTTP", "", o.server(t, nil, nil))
	p.apply(t, o.events[before:])
	if code, got := ask(t, listenerAt(t, admin, "0.0.0.0_80"), "first.example", nil); code != http.StatusOK {
		t.Errorf("%d %s", code, got)
	}
}
