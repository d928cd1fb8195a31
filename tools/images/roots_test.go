package images

import (
	"crypto/x509"
	"encoding/pem"
	"testing"
)

func TestPublicRootsAreAuthorities(t *testing.T) {
	n := 0
	for block, rest := pem.Decode(publicRoots()); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil || !cert.IsCA {
			t.Errorf("a certificate of no authority: %v", err)
		}
		n++
	}
	if n < 50 {
		t.Errorf("%d authorities", n)
	}
}
