package ca

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// The key usage extension (RFC 5280, 4.2.1.3) must be there and critical (X509-SVID, 4.3); basic and name constraints of a
// certificate that signs must be critical too (RFC 5280, 4.2.1.9 and 4.2.1.10).
var (
	keyUsageID         = asn1.ObjectIdentifier{2, 5, 29, 15}
	basicConstraintsID = asn1.ObjectIdentifier{2, 5, 29, 19}
	nameConstraintsID  = asn1.ObjectIdentifier{2, 5, 29, 30}
)

// leafExtensions are those that a leaf may have: key usage, subject alternative name, basic constraints, authority key
// identifier, extended key usage (RFC 5280, 4.2.1), and the pod.
var leafExtensions = []asn1.ObjectIdentifier{{2, 5, 29, 15}, {2, 5, 29, 17}, {2, 5, 29, 19}, {2, 5, 29, 35}, {2, 5, 29, 37}, spiffe.PodExtension}

// rootExtensions are those that a root may have: subject key identifier, key usage, subject alternative name, basic and name
// constraints, authority key identifier.
var rootExtensions = []asn1.ObjectIdentifier{{2, 5, 29, 14}, {2, 5, 29, 15}, {2, 5, 29, 17}, {2, 5, 29, 19}, {2, 5, 29, 30}, {2, 5, 29, 35}}

// findings collects what is wrong with a certificate.
type findings []error

func (f *findings) require(ok bool, format string, args ...any) {
	if !ok {
		*f = append(*f, fmt.Errorf(format, args...))
	}
}

// form checks what RFC 5280 asks of every certificate, and that it is of the key.
func (f *findings) form(c *x509.Certificate, key crypto.PublicKey, extensions, critical []asn1.ObjectIdentifier) {
	f.require(c.Version == 3, "version %d", c.Version)
	f.require(c.SerialNumber.Sign() > 0 && len(c.SerialNumber.Bytes()) <= 20, "serial number out of range")
	f.require(c.NotBefore.Before(c.NotAfter), "it ends before it begins")
	f.require(len(c.EmailAddresses)+len(c.IPAddresses) == 0, "SANs other than URI and DNS")
	f.require(len(c.UnhandledCriticalExtensions) == 0, "unknown critical extension")
	for _, e := range c.Extensions {
		f.require(slices.ContainsFunc(extensions, e.Id.Equal), "unknown extension %s", e.Id)
		f.require(e.Critical || !slices.ContainsFunc(critical, e.Id.Equal), "extension %s must be critical", e.Id)
	}
	f.require(c.SignatureAlgorithm != x509.SHA1WithRSA && c.SignatureAlgorithm != x509.ECDSAWithSHA1, "signature with SHA-1")
	public, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	f.require(ok && public.Equal(key), "another key")
}

// lintRoot checks every MUST that the X509-SVID specification has for a certificate that signs, and that the root is worth
// nothing outside its trust domain.
func lintRoot(c *x509.Certificate, trustDomain string, key crypto.PublicKey) error {
	var f findings
	f.form(c, key, rootExtensions, []asn1.ObjectIdentifier{keyUsageID, basicConstraintsID, nameConstraintsID})
	f.require(c.IsCA && c.BasicConstraintsValid, "what signs must be CA:TRUE")
	f.require(c.MaxPathLen == 0 && c.MaxPathLenZero, "path length %d where only leaves may be signed", c.MaxPathLen)
	f.require(c.KeyUsage&x509.KeyUsageCertSign != 0, "what signs must have keyCertSign")
	f.require(c.KeyUsage&^(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) == 0, "key usage %b is more than a root may have", c.KeyUsage)
	f.require(len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0, "extended key usage is a leaf's")
	f.require(len(c.URIs) == 1 && c.URIs[0].String() == "spiffe://"+trustDomain, "SPIFFE IDs %v where that of the trust domain alone should be", c.URIs)
	f.require(len(c.DNSNames) == 0, "DNS names %v", c.DNSNames)
	f.require(net.ParseIP(trustDomain) != nil || slices.Equal(c.PermittedURIDomains, []string{trustDomain}), "name constraint %v where the trust domain alone should be", c.PermittedURIDomains)
	f.require(c.Subject.String() != "" && bytes.Equal(c.RawIssuer, c.RawSubject), "what is self-signed has a name, and is its own issuer")
	f.require(len(c.SubjectKeyId) > 0, "no subject key identifier")
	return errors.Join(f...)
}

// lintSVID checks every MUST that the X509-SVID specification has for a leaf, and that the leaf says what was asked.
func lintSVID(c, issuer *x509.Certificate, r Request) error {
	id, err := spiffe.FromCertificate(c)
	if err != nil {
		return err
	}
	pod, err := spiffe.PodOf(c)
	if err != nil {
		return err
	}
	_, isRSA := c.PublicKey.(*rsa.PublicKey)
	allowed := x509.KeyUsageDigitalSignature
	if isRSA {
		allowed |= x509.KeyUsageKeyEncipherment
	}
	var f findings
	f.form(c, r.PublicKey, leafExtensions, []asn1.ObjectIdentifier{keyUsageID})
	f.require(id == r.ID, "identity %s where %s was asked for", id, r.ID)
	f.require(pod == r.Pod, "pod %v where %v was asked for", pod, r.Pod)
	f.require(!c.IsCA && c.BasicConstraintsValid, "a leaf must be CA:FALSE")
	f.require(c.KeyUsage&x509.KeyUsageDigitalSignature != 0, "a leaf must have digitalSignature")
	f.require(c.KeyUsage&^allowed == 0, "key usage %b is more than a leaf may have", c.KeyUsage)
	f.require(slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) && len(c.UnknownExtKeyUsage) == 0,
		"extended key usage must be serverAuth and clientAuth")
	f.require(slices.Equal(c.DNSNames, r.DNSNames), "DNS names %v where %v were asked for", c.DNSNames, r.DNSNames)
	f.require(c.Subject.String() == "", "subject %q where none should be", c.Subject)
	f.require(bytes.Equal(c.RawIssuer, issuer.RawSubject) && bytes.Equal(c.AuthorityKeyId, issuer.SubjectKeyId), "another issuer")
	f.require(!c.NotAfter.After(issuer.NotAfter), "validity outside the issuer's")
	return errors.Join(f...)
}
