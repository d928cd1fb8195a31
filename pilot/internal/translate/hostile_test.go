package translate_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// names is a subject alternative name extension of raw GeneralNames.
func names(t *testing.T, all ...asn1.RawValue) func(*x509.Certificate) {
	t.Helper()
	der, err := asn1.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *x509.Certificate) {
		c.URIs = nil
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: der})
	}
}

func uriName(content string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(content)}
}

// The mesh's own CA signs none of these. Should one ever exist, it is not taken for the identity it resembles.
func TestCertificateThatResemblesAnIdentityIsNotTakenForIt(t *testing.T) {
	auditor := spiffe.ID{TrustDomain: "cluster.local", Namespace: "finance", ServiceAccount: "auditor"}
	id := auditor.String()
	ports, ca := envoytest.FreePorts(t, 2), envoytest.NewCA(t)
	otherName, err := asn1.Marshal(struct {
		Type  asn1.ObjectIdentifier
		Value string `asn1:"explicit,tag:0,utf8"`
	}{asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}, id})
	if err != nil {
		t.Fatal(err)
	}
	var other asn1.RawValue
	if _, err := asn1.Unmarshal(otherName, &other); err != nil {
		t.Fatal(err)
	}
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[1]}
	b.StaticResources.Listeners = append(b.StaticResources.Listeners, workloadListener(t, allowOnly(auditor), false, ports[0], ca, ca.Issue(t, "spiffe://cluster.local/ns/finance/sa/payroll")))
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")

	for name, c := range map[string]struct {
		leaf envoytest.Leaf
		want bool
	}{
		"the identity itself":              {ca.Issue(t, id), true},
		"a NUL and more after it":          {ca.IssueChanged(t, id, names(t, uriName(id+"\x00.evil"))), false},
		"a NUL before its end":             {ca.IssueChanged(t, id, names(t, uriName("spiffe://cluster.local/ns/finance/sa/aud\x00itor"))), false},
		"its name as an otherName":         {ca.IssueChanged(t, id, names(t, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: other.Bytes})), false},
		"its name as a DNS name":           {ca.IssueChanged(t, id, names(t, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(id)})), false},
		"its name as the subject":          {ca.IssueChanged(t, id, func(c *x509.Certificate) { c.URIs, c.Subject = nil, pkix.Name{CommonName: id} }), false},
		"its name in upper case":           {ca.IssueChanged(t, id, names(t, uriName("spiffe://CLUSTER.LOCAL/ns/finance/sa/auditor"))), false},
		"its name with a dot segment":      {ca.IssueChanged(t, id, names(t, uriName("spiffe://cluster.local/ns/finance/sa/x/../auditor"))), false},
		"its name escaped":                 {ca.IssueChanged(t, id, names(t, uriName("spiffe://cluster.local/ns/finance/sa/%61uditor"))), false},
		"its name with a slash at the end": {ca.IssueChanged(t, id, names(t, uriName(id+"/"))), false},
		"another trust domain":             {ca.Issue(t, "spiffe://elsewhere.example/ns/finance/sa/auditor"), false},
		"its certificate after its end":    {ca.IssueChanged(t, id, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), false},
		"its certificate before its beginning": {ca.IssueChanged(t, id, func(c *x509.Certificate) {
			c.NotBefore = time.Now().Add(time.Hour)
			c.NotAfter = time.Now().Add(2 * time.Hour)
		}), false},
		"a certificate for servers only": {ca.IssueChanged(t, id, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), false},
		"a certificate of another CA":    {envoytest.NewCA(t).Issue(t, id), false},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, ports[0], c.leaf)
			status := 0
			if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: payroll\r\n\r\n"); err == nil {
				if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
					status = resp.StatusCode
					resp.Body.Close()
				}
			}
			if (status == http.StatusOK) != c.want {
				t.Errorf("answer %d", status)
			}
			t.Logf("answer %d (0 is a refused handshake)", status)
		})
	}
}

// A session that could be resumed would outlive the roots by which its certificate was checked.
func TestSessionsWithAProxyAreNotResumed(t *testing.T) {
	auditor := spiffe.ID{TrustDomain: "cluster.local", Namespace: "finance", ServiceAccount: "auditor"}
	ports, ca := envoytest.FreePorts(t, 2), envoytest.NewCA(t)
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[1]}
	b.StaticResources.Listeners = append(b.StaticResources.Listeners, workloadListener(t, allowOnly(auditor), false, ports[0], ca, ca.Issue(t, "spiffe://cluster.local/ns/finance/sa/payroll")))
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")
	config := &tls.Config{ //nolint:gosec // the server's name is not what is tested
		Certificates: []tls.Certificate{ca.Issue(t, auditor.String()).TLS}, InsecureSkipVerify: true, NextProtos: []string{"istio"},
		MinVersion: tls.VersionTLS13, ClientSessionCache: tls.NewLRUClientSessionCache(8), ServerName: "payroll",
	}
	for range 3 {
		conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0]), config)
		if err != nil {
			t.Fatal(err)
		}
		// Tickets come with the first data.
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: payroll\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%v %v", resp, err)
		}
		resp.Body.Close()
		if conn.ConnectionState().DidResume {
			t.Error("a session was resumed")
		}
		conn.Close()
	}
}
