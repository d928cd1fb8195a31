package ca

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// lint signs the template with the throw-away key and checks the result as a stranger would. Only what passes is signed
// with the real key, so a certificate that breaks the specification never exists.
func (a *Authority) lint(template *x509.Certificate, r Request) (*x509.Certificate, error) {
	issuer := *a.cert
	issuer.PublicKey = a.lintKey.Public()
	der, err := x509.CreateCertificate(rand.Reader, template, &issuer, r.PublicKey, a.lintKey)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return cert, lintSVID(cert, a.cert, r)
}

// lintSVID checks every MUST that the X509-SVID specification has for a leaf, and that the leaf says what was asked.
func lintSVID(c, issuer *x509.Certificate, r Request) error {
	id, err := spiffe.FromCertificate(c)
	if err != nil {
		return err
	}
	_, isRSA := c.PublicKey.(*rsa.PublicKey)
	allowed := x509.KeyUsageDigitalSignature
	if isRSA {
		allowed |= x509.KeyUsageKeyEncipherment
	}
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	require(id == r.ID, "identity %s where %s was asked for", id, r.ID)
	require(c.Version == 3, "version %d", c.Version)
	require(c.SerialNumber.Sign() > 0 && len(c.SerialNumber.Bytes()) <= 20, "serial number out of range")
	require(!c.IsCA && c.BasicConstraintsValid, "a leaf must be CA:FALSE")
	require(c.KeyUsage&x509.KeyUsageDigitalSignature != 0, "a leaf must have digitalSignature")
	require(c.KeyUsage&^allowed == 0, "key usage %b is more than a leaf may have", c.KeyUsage)
	require(slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) && len(c.UnknownExtKeyUsage) == 0,
		"extended key usage must be serverAuth and clientAuth")
	require(slices.Equal(c.DNSNames, r.DNSNames), "DNS names %v where %v were asked for", c.DNSNames, r.DNSNames)
	require(len(c.EmailAddresses)+len(c.IPAddresses) == 0, "SANs other than URI and DNS")
	require(c.Subject.String() == "", "subject %q where none should be", c.Subject)
	require(c.NotBefore.Before(c.NotAfter) && !c.NotAfter.After(issuer.NotAfter), "validity outside the issuer's")
	require(len(c.UnhandledCriticalExtensions) == 0, "unknown critical extension")
	require(c.SignatureAlgorithm != x509.SHA1WithRSA && c.SignatureAlgorithm != x509.ECDSAWithSHA1, "signature with SHA-1")
	return errors.Join(errs...)
}
