package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// keyUsageID is the key usage extension (RFC 5280, 4.2.1.3), which must be there and critical (X509-SVID, 4.3).
var keyUsageID = asn1.ObjectIdentifier{2, 5, 29, 15}

// lintedKey is the CA's key in front of which the linter stands: the very bytes that are to be signed are first signed with
// a throw-away key and read as a stranger would read the certificate, and only what passes is signed with the real one.
// So a certificate that breaks the specification never exists.
type lintedKey struct {
	crypto.Signer
	throwAway crypto.Signer // of the same kind
	lint      func(*x509.Certificate) error
}

// SignMessage implements crypto.MessageSigner, which is how x509 hands over the whole of what is signed.
func (k lintedKey) SignMessage(rand io.Reader, tbs []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := crypto.SignMessage(k.throwAway, rand, tbs, opts)
	if err != nil {
		return nil, fmt.Errorf("signing with the throw-away key: %w", err)
	}
	c, err := assemble(tbs, signature)
	if err != nil {
		return nil, fmt.Errorf("reading what is to be signed: %w", err)
	}
	if err := k.lint(c); err != nil {
		return nil, err
	}
	return crypto.SignMessage(k.Signer, rand, tbs, opts)
}

// Sign implements crypto.Signer. A digest says nothing about what is signed, so it is refused.
func (k lintedKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("what cannot be linted is not signed")
}

// assemble makes a certificate of its to-be-signed part and a signature (RFC 5280, 4.1).
func assemble(tbs, signature []byte) (*x509.Certificate, error) {
	var head struct {
		Version   int `asn1:"optional,explicit,default:0,tag:0"`
		Serial    asn1.RawValue
		Algorithm asn1.RawValue
	}
	if _, err := asn1.Unmarshal(tbs, &head); err != nil {
		return nil, err
	}
	der, err := asn1.Marshal(struct {
		TBS, Algorithm asn1.RawValue
		Signature      asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, asn1.RawValue{FullBytes: head.Algorithm.FullBytes}, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}})
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// throwAways are the keys that sign what is linted, one of each kind, made when it is first needed: an RSA key takes a
// while.
var throwAways sync.Map

// throwAwayLike returns the throw-away key of a public key's kind.
func throwAwayLike(public crypto.PublicKey) (crypto.Signer, error) {
	var kind string
	var fresh func() (crypto.Signer, error)
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		kind = p.Curve.Params().Name
		fresh = func() (crypto.Signer, error) { return ecdsa.GenerateKey(p.Curve, rand.Reader) }
	case *rsa.PublicKey:
		kind = fmt.Sprint("RSA-", p.N.BitLen())
		fresh = func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, p.N.BitLen()) }
	default:
		return nil, fmt.Errorf("keys of type %T are not supported", public)
	}
	if key, ok := throwAways.Load(kind); ok {
		return key.(crypto.Signer), nil
	}
	key, err := fresh()
	if err != nil {
		return nil, fmt.Errorf("making the throw-away key: %w", err)
	}
	kept, _ := throwAways.LoadOrStore(kind, key)
	return kept.(crypto.Signer), nil
}

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
