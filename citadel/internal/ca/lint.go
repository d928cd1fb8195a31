package ca

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// keyUsageID is the key usage extension (RFC 5280, 4.2.1.3), which must be there and critical (X509-SVID, 4.3).
var keyUsageID = asn1.ObjectIdentifier{2, 5, 29, 15}

// leafExtensions are those that a leaf may have: key usage, subject alternative name, basic constraints, authority key
// identifier, extended key usage (RFC 5280, 4.2.1), and the pod.
var leafExtensions = []asn1.ObjectIdentifier{{2, 5, 29, 15}, {2, 5, 29, 17}, {2, 5, 29, 19}, {2, 5, 29, 35}, {2, 5, 29, 37}, oidPod}

// lintSVID checks every MUST that the X509-SVID specification has for a leaf, and that the leaf says what was asked.
func lintSVID(c, issuer *x509.Certificate, r Request) error {
	id, err := spiffe.FromCertificate(c)
	if err != nil {
		return err
	}
	pod, err := PodOf(c)
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
	require(pod == r.Pod, "pod %v where %v was asked for", pod, r.Pod)
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
	require(bytes.Equal(c.RawIssuer, issuer.RawSubject) && bytes.Equal(c.AuthorityKeyId, issuer.SubjectKeyId), "another issuer")
	require(c.NotBefore.Before(c.NotAfter) && !c.NotAfter.After(issuer.NotAfter), "validity outside the issuer's")
	require(len(c.UnhandledCriticalExtensions) == 0, "unknown critical extension")
	for _, e := range c.Extensions {
		require(slices.ContainsFunc(leafExtensions, e.Id.Equal), "unknown extension %s", e.Id)
		require(e.Critical || !e.Id.Equal(keyUsageID), "key usage must be critical")
	}
	require(c.SignatureAlgorithm != x509.SHA1WithRSA && c.SignatureAlgorithm != x509.ECDSAWithSHA1, "signature with SHA-1")
	public, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	require(ok && public.Equal(r.PublicKey), "another key")
	return errors.Join(errs...)
}
