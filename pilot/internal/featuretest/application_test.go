package featuretest

import (
	"bufio"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// service is a Service whose application is at a port of this machine. It returns where the Service is called.
func (o *outside) service(t *testing.T, n int, name, port string, server int) string {
	t.Helper()
	o.add(t, fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %[1]s, namespace: finance}\nspec: {clusterIP: 10.96.1.%[2]d, clusterIPs: [10.96.1.%[2]d], ports: [{%[3]s, port: 80}]}\n---\n"+
		"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: %[1]s, namespace: finance, labels: {kubernetes.io/service-name: %[1]s}}\naddressType: IPv4\n"+
		"ports: [{name: port, port: %[4]d}]\nendpoints: [{addresses: [127.0.0.1]}]", name, n, port, server))
	return fmt.Sprintf("10.96.1.%d_80", n)
}

// call asks for /pay where a Service is called, and returns the status and the body.
func call(t *testing.T, listener, service string) (int, string) {
	t.Helper()
	ip, port, _ := strings.Cut(service, "_")
	conn := dial(t, listener)
	if _, err := fmt.Fprintf(conn, "PROXY TCP4 10.0.0.1 %s 40000 %s\r\nGET /pay HTTP/1.1\r\nHost: whoever\r\nConnection: close\r\n\r\n", ip, port); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

// A proxy speaks TLS with the applications of a Service on behalf of its client, and only with one whose certificate has the Service's name, or one that the rule asks for,
// and is vouched for by the authority that the rule names.
func TestApplicationsOfServicesProveTheirNames(t *testing.T) {
	o := newOutside(t)
	stranger := envoytest.NewCA(t)
	const refused, closed, web = "CERTIFICATE_VERIFY_FAILED", "upstream connect error", "name: port, appProtocol: http"
	simple := "mode: SIMPLE, caCertificates: " + o.roots
	mutual := o.mutual(t)
	cases := []struct {
		name, port, way string
		ca              *envoytest.CA
		certified       string
		want            string
	}{
		{"whole", web, simple, o.ca, "whole.finance.svc.cluster.local", "asked for as whole.finance.svc.cluster.local"},
		{"short", web, simple, o.ca, "short.finance.svc", "asked for as short.finance.svc.cluster.local"},
		{"shortest", web, simple, o.ca, "shortest", refused},
		{"other", web, simple, o.ca, "other.old.svc", refused},
		{"stranger", web, simple, stranger, "stranger.finance.svc", refused},
		{"public", web, "mode: SIMPLE", o.ca, "public.finance.svc", refused},
		{"named", web, simple + ", subjectAltNames: [alt.example], sni: front.example", o.ca, "alt.example", "asked for as front.example"},
		{"misnamed", web, simple + ", subjectAltNames: [alt.example]", o.ca, "misnamed.finance.svc", refused},
		{"mutual", web, mutual, o.ca, "mutual.finance.svc", "by [spiffe://partner.example/client]"},
		{"grpc", "name: port, appProtocol: grpc", simple, o.ca, "grpc.finance.svc", "HTTP/2.0 /pay"},
		{"tcp", "name: port, appProtocol: tcp", simple, o.ca, "tcp.finance.svc", "asked for as tcp.finance.svc.cluster.local"},
		{"undeclared", "name: port", simple, o.ca, "undeclared.finance.svc", "asked for as undeclared.finance.svc.cluster.local"},
		{"disabled", web, "mode: DISABLE", nil, "", "asked for as plaintext"},
		{"insecure", web, simple + ", insecureSkipVerify: true", o.ca, "insecure.finance.svc", closed},
	}
	at := map[string]string{}
	for i, c := range cases {
		var names []string
		if c.certified != "" {
			names = []string{c.certified}
		}
		var clients *x509.CertPool
		if c.name == "mutual" {
			clients = o.ca.Pool()
		}
		at[c.name] = o.service(t, i+1, c.name, c.port, o.server(t, c.ca, clients, names...))
		o.add(t, rule(c.name, c.way))
	}
	admin := start(t, newPilot(t, o.events), "finance/payroll-1", true)
	for _, c := range cases {
		listener := listenerAt(t, admin, at[c.name])
		code, got := 0, ""
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if c.name == "grpc" {
				code, got = ask(t, listener, "whoever", h2c())
			} else {
				code, got = call(t, listener, at[c.name])
			}
			if !strings.Contains(got, "no healthy upstream") { // until its endpoints are there
				break
			}
		}
		if !strings.Contains(got, c.want) || (code == http.StatusOK) != (c.want != refused && c.want != closed) {
			t.Errorf("%s, %s, certified as %s: %d %s, want %s", c.name, c.way, c.certified, code, got, c.want)
		}
	}
}

// A rule for a Service whose files a proxy does not have has it speak with nobody, and never as it did before.
func TestTLSWithApplicationsThatCannotBeHadIsNotPlaintext(t *testing.T) {
	o := newOutside(t)
	name := o.service(t, 1, "plain", "name: port, appProtocol: http", o.server(t, nil, nil))
	p := newPilot(t, o.events)
	at := listenerAt(t, start(t, p, "finance/payroll-1", true), name)
	heard := func(want int) (code int, got string) {
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if code, got = call(t, at, name); code == want {
				break
			}
		}
		return code, got
	}
	if code, got := heard(http.StatusOK); code != http.StatusOK {
		t.Fatalf("without a rule: %d %s", code, got)
	}
	p.apply(t, o.add(t, rule("plain", "mode: SIMPLE, caCertificates: /no/such/file")))
	code, got := heard(http.StatusServiceUnavailable)
	for range 20 {
		if code != http.StatusServiceUnavailable {
			t.Fatalf("with it: %d %s", code, got)
		}
		code, got = call(t, at, name)
	}
}

// A rule that comes while proxies speak with a Service, and one that goes, has them speak as it says, with the endpoints that they know: one for all, and one for the clients of
// its namespace alone.
func TestRulesForApplicationsComeAndGo(t *testing.T) {
	o := newOutside(t)
	name := o.service(t, 1, "tls", "name: port, appProtocol: http", o.server(t, o.ca, nil, "tls.finance.svc"))
	p := newPilot(t, o.events)
	at := listenerAt(t, start(t, p, "finance/payroll-1", true), name)
	becomes := func(what string, want int) {
		t.Helper()
		code, got := 0, ""
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if code, got = call(t, at, name); code == want {
				return
			}
		}
		t.Fatalf("%s: %d %s, want %d", what, code, got, want)
	}
	becomes("plaintext", http.StatusBadRequest)
	for _, to := range []string{"*", "."} {
		rules := o.add(t, strings.TrimSuffix(rule("tls", "mode: SIMPLE, caCertificates: "+o.roots), "}")+fmt.Sprintf(", exportTo: [%q]}", to))
		p.apply(t, rules)
		becomes("with a rule for "+to, http.StatusOK)
		p.apply(t, []registry.Event{{Kind: registry.DestinationRules, ID: rules[0].ID}})
		becomes("without it", http.StatusBadRequest)
	}
}
