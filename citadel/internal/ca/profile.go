package ca

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// profile is the X.509-SVID of a request, by section 4 of the X509-SVID specification: one URI SAN, no CA, digital
// signature, client and server use. The subject is empty (which makes the SAN critical): nobody should read a name
// there. Everything comes from the authenticated identity, nothing from a CSR but its key.
func profile(r Request, now, issuerEnd time.Time) (*x509.Certificate, error) {
	if r.ID.IsZero() {
		return nil, errors.New("no identity to certify")
	}
	if r.TTL <= 0 {
		return nil, fmt.Errorf("lifetime %s of the certificate for %s is not positive", r.TTL, r.ID)
	}
	uri, err := url.Parse(r.ID.String())
	if err != nil {
		return nil, fmt.Errorf("identity %s: %w", r.ID, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	end := now.Add(r.TTL)
	if end.After(issuerEnd) {
		end = issuerEnd
	}
	if !end.After(now) {
		return nil, fmt.Errorf("CA certificate ended at %s", issuerEnd)
	}
	usage := x509.KeyUsageDigitalSignature
	if _, ok := r.PublicKey.(*rsa.PublicKey); ok {
		usage |= x509.KeyUsageKeyEncipherment
	}
	var extra []pkix.Extension
	if r.Pod != (spiffe.Pod{}) {
		pod, err := r.Pod.Extension()
		if err != nil {
			return nil, err
		}
		extra = append(extra, pod)
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-Backdate),
		NotAfter:              end,
		KeyUsage:              usage,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{uri},
		DNSNames:              r.DNSNames,
		ExtraExtensions:       extra,
	}, nil
}

// Constrain limits a CA certificate, or the request for one, to leaves of the trust domain: a stolen key is worth nothing
// anywhere else. A trust domain that looks like an address cannot be named in such a constraint (RFC 5280, 4.2.1.10).
func Constrain(template *x509.Certificate, trustDomain string) {
	template.MaxPathLenZero = true
	if net.ParseIP(trustDomain) == nil {
		template.PermittedURIDomains, template.PermittedDNSDomainsCritical = []string{trustDomain}, true
	}
}

// rootProfile is a self-signed root, of a name that no other has, that may sign leaves of its trust domain and nothing else. Its URI SAN is the trust
// domain, as the specification asks of signing certificates.
func rootProfile(trustDomain string, now time.Time, ttl time.Duration) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	root := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"Bulwark"}, CommonName: fmt.Sprintf("Bulwark root of %s %s %04x", trustDomain, now.UTC().Format("2006-01-02"), serial.Bytes()[:2])},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(ttl),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
	}
	Constrain(root, trustDomain)
	return root, nil
}

// newSerial returns 128 random bits (never zero).
func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	serial := new(big.Int).SetBytes(b)
	if serial.Sign() == 0 {
		return nil, errors.New("making a serial number: all bits are zero")
	}
	return serial, nil
}
