package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"sync"
)

// sign makes the certificate of a leaf.
func (a *Authority) sign(template *x509.Certificate, r Request) (*x509.Certificate, error) {
	return signLinted(template, a.cert, r.PublicKey, a.key, a.throwAway, func(c *x509.Certificate) error { return lintSVID(c, a.cert, r) })
}

// signRoot makes the self-signed certificate of a key.
func signRoot(template *x509.Certificate, trustDomain string, key crypto.Signer) (*x509.Certificate, error) {
	throwAway, err := throwAwayLike(key.Public())
	if err != nil {
		return nil, err
	}
	return signLinted(template, template, key.Public(), key, throwAway, func(c *x509.Certificate) error { return lintRoot(c, trustDomain, key.Public()) })
}

// signLinted makes a certificate of a template. The linter stands in front of the key: the very bytes that are to be signed
// are first signed with a throw-away key and read as a stranger would read the certificate, and only what passes is signed
// with the real key. So a certificate that breaks the specification never exists.
func signLinted(template, parent *x509.Certificate, public crypto.PublicKey, key, throwAway crypto.Signer, lint func(*x509.Certificate) error) (*x509.Certificate, error) {
	draft := recorder{Signer: key}
	if _, err := x509.CreateCertificate(rand.Reader, template, parent, public, &draft); !errors.Is(err, errRecorded) {
		return nil, fmt.Errorf("writing what is to be signed: %w", err)
	}
	der, _, err := draft.signedWith(throwAway)
	if err != nil {
		return nil, fmt.Errorf("signing with the throw-away key: %w", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading what is to be signed: %w", err)
	}
	if err := lint(c); err != nil {
		return nil, err
	}
	c.Raw, c.Signature, err = draft.signedWith(key)
	return c, err
}

// recorder stands in for the key while x509 writes a certificate, and keeps what it would have signed. Were the key itself
// there, x509 would verify each signature of it, which takes twice the time of making it. That guards against faults which
// give a key away: crypto/rsa looks for them itself, and crypto/ecdsa mixes fresh randomness into every signature, so that
// a faulty one says nothing. Nobody else is harmed by one: who asked for the certificate verifies it.
type recorder struct {
	crypto.Signer
	tbs  []byte
	opts crypto.SignerOpts
}

var errRecorded = errors.New("recorded, not signed")

// SignMessage implements crypto.MessageSigner, which is how x509 hands over the whole of what is signed.
func (r *recorder) SignMessage(_ io.Reader, tbs []byte, opts crypto.SignerOpts) ([]byte, error) {
	r.tbs, r.opts = tbs, opts
	return nil, errRecorded
}

// signedWith returns the certificate in DER (RFC 5280, 4.1), and the signature in it.
func (r *recorder) signedWith(key crypto.Signer) (der, signature []byte, err error) {
	var tbs struct {
		Version   int `asn1:"optional,explicit,default:0,tag:0"`
		Serial    asn1.RawValue
		Algorithm asn1.RawValue
	}
	if _, err := asn1.Unmarshal(r.tbs, &tbs); err != nil {
		return nil, nil, err
	}
	if signature, err = crypto.SignMessage(key, rand.Reader, r.tbs, r.opts); err != nil {
		return nil, nil, err
	}
	der, err = asn1.Marshal(struct {
		TBS, Algorithm asn1.RawValue
		Signature      asn1.BitString
	}{asn1.RawValue{FullBytes: r.tbs}, asn1.RawValue{FullBytes: tbs.Algorithm.FullBytes}, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}})
	return der, signature, err
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
