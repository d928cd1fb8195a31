package envoytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"testing"
	"time"
)

// CA signs certificates for tests.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	Root []byte // PEM
}

// Leaf is a certificate and its key.
type Leaf struct {
	Cert, Key []byte // PEM
	TLS       tls.Certificate
}

// NewCA returns a new authority.
func NewCA(t testing.TB) *CA {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Issue returns a certificate of a SPIFFE ID.
func (ca *CA) Issue(t testing.TB, id string) Leaf {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return ca.IssueNumbered(t, id, serial)
}

// IssueNumbered returns a certificate of a SPIFFE ID with a serial number.
func (ca *CA) IssueNumbered(t testing.TB, id string, serial *big.Int) Leaf {
	t.Helper()
	return ca.issue(t, id, serial, func(*x509.Certificate) {})
}

// IssueChanged returns a certificate of a SPIFFE ID after a change that no authority would make.
func (ca *CA) IssueChanged(t testing.TB, id string, change func(*x509.Certificate)) Leaf {
	t.Helper()
	return ca.issue(t, id, big.NewInt(time.Now().UnixNano()), change)
}

func (ca *CA) issue(t testing.TB, id string, serial *big.Int, change func(*x509.Certificate)) Leaf {
	t.Helper()
	key := newKey(t)
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{uri},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := Leaf{Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})}
	// Not tls.X509KeyPair, which refuses what it cannot parse; Leaf is nil then.
	parsed, _ := x509.ParseCertificate(der)
	leaf.TLS = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: parsed}
	return leaf
}

// Pool returns the authority's root.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}
