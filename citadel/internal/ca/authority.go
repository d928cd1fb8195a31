// Package ca is Citadel's certificate authority: it holds the signing key and issues X.509-SVIDs. It knows the rules of
// the format and nothing about who may have which identity.
package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Backdate is how far before the moment of issue a certificate begins to be valid.
const Backdate = mesh.Backdate

// Authority signs with one CA key. It is immutable and safe for concurrent use.
type Authority struct {
	material  Material
	cert      *x509.Certificate // of the key that signs: the root itself, or an intermediate
	chain     []*x509.Certificate
	roots     []*x509.Certificate
	key       crypto.Signer
	clock     clock.PassiveClock
	end       time.Time     // when the last of its chains to a root ends; no certificate outlives that
	throwAway crypto.Signer // signs what is linted
	above     []string      // what is above each leaf, in PEM
}

// Request asks for a certificate. The caller has authenticated ID and proven possession of the key.
type Request struct {
	ID        spiffe.ID
	PublicKey crypto.PublicKey
	TTL       time.Duration
	DNSNames  []string   // only those which configuration gives to ID
	Pod       spiffe.Pod // for which pod it is; the zero Pod for none
}

// New returns the authority of the material after checking that its parts fit each other.
func New(m Material, c clock.PassiveClock) (*Authority, error) {
	a := &Authority{material: m, clock: c}
	certs, err := DecodeCerts(m.Cert)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	a.cert = certs[0]
	if a.roots, err = DecodeCerts(m.Root); err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	if len(bytes.TrimSpace(m.Chain)) > 0 {
		if a.chain, err = DecodeCerts(m.Chain); err != nil {
			return nil, fmt.Errorf("certificate chain: %w", err)
		}
	}
	if a.key, err = DecodeKey(m.Key); err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	if err := a.check(); err != nil {
		return nil, err
	}
	if a.throwAway, err = throwAwayLike(a.key.Public()); err != nil {
		return nil, err
	}
	for _, c := range append(a.intermediates(), a.roots[0]) {
		a.above = append(a.above, string(EncodeCerts([]*x509.Certificate{c})))
	}
	return a, nil
}

func (a *Authority) check() error {
	public, ok := a.key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(a.cert.PublicKey) {
		return errors.New("CA key does not belong to the CA certificate")
	}
	if !a.cert.IsCA || a.cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return errors.New("CA certificate may not sign certificates (it needs CA:TRUE and keyCertSign)")
	}
	// X509-SVID, 3.2: a signing certificate that has a SPIFFE ID has that of a trust domain.
	for _, uri := range a.cert.URIs {
		if uri.Scheme == "spiffe" && uri.Path != "" {
			return fmt.Errorf("CA certificate has the SPIFFE ID %s: one that signs has none, or that of its trust domain", uri)
		}
	}
	if len(a.cert.SubjectKeyId) == 0 {
		return errors.New("CA certificate has no subject key identifier (RFC 5280, 4.2.1.2), by which what it signs is told apart")
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range a.roots {
		roots.AddCert(c)
	}
	for _, c := range a.chain {
		intermediates.AddCert(c)
	}
	chains, err := a.cert.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: a.clock.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("CA certificate does not chain to the root: %w", err)
	}
	if chains = slices.DeleteFunc(chains, forbidsLeaves); len(chains) == 0 {
		return errors.New("CA certificate may not sign: a path length above it has no room for a leaf beneath it")
	}
	for _, chain := range chains {
		if end := firstEnd(chain); end.After(a.end) {
			a.end = end
		}
	}
	return nil
}

// forbidsLeaves reports whether a chain of certificates that sign is too long for one of them when a leaf comes beneath it
// (RFC 5280, 4.2.1.9: the path length counts the intermediates between a certificate and the leaf).
func forbidsLeaves(chain []*x509.Certificate) bool {
	for between, c := range chain {
		if limited := c.MaxPathLen > 0 || c.MaxPathLenZero; limited && between > c.MaxPathLen {
			return true
		}
	}
	return false
}

// firstEnd is when the first certificate of a chain ends, and the chain with it.
func firstEnd(chain []*x509.Certificate) time.Time {
	end := chain[0].NotAfter
	for _, c := range chain[1:] {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

// Issue signs a certificate and returns its chain, leaf first, without the root.
func (a *Authority) Issue(r Request) ([]*x509.Certificate, error) {
	if err := CheckKey(r.PublicKey); err != nil {
		return nil, err
	}
	now := a.clock.Now()
	template, err := profile(r, now, a.end)
	if err != nil {
		return nil, err
	}
	leaf, err := a.sign(template, r)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s is not signed: %w", r.ID, err)
	}
	return append([]*x509.Certificate{leaf}, a.intermediates()...), nil
}

// Try issues a certificate to nobody and verifies it as a peer would: a CA whose path length or name constraints forbid
// what it is needed for is found out before anyone depends on it.
func (a *Authority) Try(id spiffe.ID) error {
	key, err := NewKey()
	if err != nil {
		return err
	}
	chain, err := a.Issue(Request{ID: id, PublicKey: key.Public(), TTL: time.Hour})
	if err != nil {
		return err
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range a.roots {
		roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: a.clock.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fmt.Errorf("a certificate for %s of this CA does not verify: %w", id, err)
	}
	return nil
}

// Constrained reports whether the CA, or one above it, is limited to certain trust domains.
func (a *Authority) Constrained() bool {
	for _, c := range append([]*x509.Certificate{a.cert}, a.chain...) {
		if len(c.PermittedURIDomains) > 0 {
			return true
		}
	}
	return false
}

// intermediates are what a leaf needs beside the root: nothing when the root itself signs.
func (a *Authority) intermediates() []*x509.Certificate {
	if isRoot(a.cert, a.roots) {
		return nil
	}
	out := []*x509.Certificate{a.cert}
	for _, c := range a.chain {
		if !c.Equal(a.cert) && !isRoot(c, a.roots) {
			out = append(out, c)
		}
	}
	return out
}

func isRoot(c *x509.Certificate, roots []*x509.Certificate) bool {
	for _, r := range roots {
		if r.Equal(c) {
			return true
		}
	}
	return false
}

// Roots returns the trust bundle.
func (a *Authority) Roots() []*x509.Certificate { return a.roots }

// RootsPEM returns the trust bundle as it is published.
func (a *Authority) RootsPEM() []byte { return EncodeCerts(a.roots) }

// Above returns what is above each leaf in PEM, one certificate each, the root last.
func (a *Authority) Above() []string { return a.above }

// Signed reports whether a certificate was issued by this key.
func (a *Authority) Signed(c *x509.Certificate) bool {
	return len(c.AuthorityKeyId) > 0 && bytes.Equal(c.AuthorityKeyId, a.cert.SubjectKeyId)
}

// Certificate returns the certificate of the key that signs.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// EncodeCerts returns certificates in PEM.
func EncodeCerts(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// DecodeCerts reads certificates in PEM, of which there must be one at least.
func DecodeCerts(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				return nil, errors.New("there is something that is not PEM")
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %q where a certificate should be", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no PEM certificate")
	}
	return out, nil
}

// DecodeKey reads one private key in PEM, and refuses those that nobody should have.
func DecodeKey(b []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(b)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("not one PEM block")
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("PEM block %q where a private key should be", block.Type)
	}
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key of type %T cannot sign", key)
	}
	return signer, CheckKey(signer.Public())
}

// NewKey returns a key of the kind that workloads have.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }
