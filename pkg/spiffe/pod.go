package spiffe

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
)

// PodExtension numbers the extension of an X.509-SVID that names the pod a certificate was issued for. The number is the UUID
// ab4b59ec-ffe9-47b9-bbe9-db65fe2d3b35, so it is nobody else's, in parts below Microsoft's arc for such numbers: as one
// part (2.25.<UUID>, ITU-T X.667) it would not fit the 31 bits beyond which Go and others refuse a certificate.
var PodExtension = asn1.ObjectIdentifier{1, 2, 840, 113556, 1, 8000, 2554, 0xab4b, 0x59ec, 0xffe9, 0x47b9, 0xbbe9, 0xdb65fe, 0x2d3b35}

// maxPodField is longer than a name (253) or UID (36) can be.
const maxPodField = 256

// Pod is the pod that a certificate was issued for, as Citadel has found it in Kubernetes, and the node that it is bound to.
// With it, the certificate may be renewed by its holder for as long as the pod is there, and a server knows for which node an
// agent may speak. The namespace is the identity's. The zero Pod is none: the certificate is in a Secret, for any pod.
type Pod struct {
	Name string `asn1:"utf8"`
	UID  string `asn1:"utf8"`
	Node string `asn1:"utf8"`
}

func (p Pod) check() error {
	for _, field := range []string{p.Name, p.UID, p.Node} {
		if field == "" || len(field) > maxPodField {
			return fmt.Errorf("pod %q has a field that is empty or longer than %d bytes", p.Name, maxPodField)
		}
	}
	return nil
}

// Extension is the pod as a SEQUENCE of three UTF8Strings. It is not critical: verifiers need not know it.
func (p Pod) Extension() (pkix.Extension, error) {
	if err := p.check(); err != nil {
		return pkix.Extension{}, err
	}
	der, err := asn1.Marshal(p)
	if err != nil {
		return pkix.Extension{}, fmt.Errorf("encoding pod %s: %w", p.Name, err)
	}
	return pkix.Extension{Id: PodExtension, Value: der}, nil
}

// PodOf returns the pod that a certificate was issued for; the zero Pod if it names none. Whoever relies on it has verified
// the certificate before.
func PodOf(c *x509.Certificate) (Pod, error) {
	for _, e := range c.Extensions {
		if !e.Id.Equal(PodExtension) {
			continue
		}
		var p Pod
		rest, err := asn1.Unmarshal(e.Value, &p)
		if err != nil {
			return Pod{}, fmt.Errorf("reading the certificate's pod: %w", err)
		}
		if len(rest) > 0 || e.Critical {
			return Pod{}, errors.New("reading the certificate's pod: the extension is critical or has trailing bytes")
		}
		return p, p.check()
	}
	return Pod{}, nil
}
