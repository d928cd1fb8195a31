package pki

import (
	"crypto/x509"
	"encoding/pem"
	"net"
	"testing"
	"time"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func parse(t *testing.T, pemBytes []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(pemBytes)
	if block == nil {
		t.Fatal("no PEM block")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestLeafVerifiesAgainstItsAuthorityOnly(t *testing.T) {
	ours, err := NewAuthority("ours", now)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAuthority("ours", now)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ours.Issue(Leaf{CommonName: "kubelet", IPs: []net.IP{net.ParseIP("10.240.0.1")}, Server: true}, now)
	if err != nil {
		t.Fatal(err)
	}
	leaf := parse(t, pair.Cert)
	for _, tc := range []struct {
		name      string
		authority *Authority
		host      string
		usage     x509.ExtKeyUsage
		ok        bool
	}{
		{"own authority", ours, "10.240.0.1", x509.ExtKeyUsageServerAuth, true},
		{"another authority of the same name", other, "10.240.0.1", x509.ExtKeyUsageServerAuth, false},
		{"another address", ours, "10.240.0.2", x509.ExtKeyUsageServerAuth, false},
		{"server used as client", ours, "10.240.0.1", x509.ExtKeyUsageClientAuth, false},
	} {
		roots := x509.NewCertPool()
		roots.AddCert(tc.authority.cert)
		_, err := leaf.Verify(x509.VerifyOptions{
			Roots: roots, DNSName: tc.host, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{tc.usage},
		})
		if (err == nil) != tc.ok {
			t.Errorf("%s: got %v", tc.name, err)
		}
	}
}

func TestLeafNeverOutlivesItsAuthority(t *testing.T) {
	ca, err := NewAuthority("ca", now)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(Leaf{CommonName: "late", Client: true}, now.Add(lifetime/2))
	if err != nil {
		t.Fatal(err)
	}
	if leaf := parse(t, pair.Cert); leaf.NotAfter.After(ca.cert.NotAfter) {
		t.Errorf("leaf ends %v, authority %v", leaf.NotAfter, ca.cert.NotAfter)
	}
}

func TestLeafWithoutPurposeIsRefused(t *testing.T) {
	ca, err := NewAuthority("ca", now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Issue(Leaf{CommonName: "nobody"}, now); err == nil {
		t.Error("issued a certificate that is neither server nor client")
	}
}
