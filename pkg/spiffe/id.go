// Package spiffe holds the SPIFFE identity of a Kubernetes service account.
package spiffe

import (
	"crypto/x509"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/util/validation"
)

// ID is the identity of a service account, spiffe://<trust domain>/ns/<namespace>/sa/<service account>.
// The zero value is no identity.
type ID struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// New returns the identity after checking its parts: the trust domain by SPIFFE-ID section 2.1, the namespace as a DNS
// label and the service account as a DNS subdomain (what Kubernetes admits). Nothing is normalised.
func New(trustDomain, namespace, serviceAccount string) (ID, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil || td.Name() != trustDomain {
		return ID{}, fmt.Errorf("trust domain %q is not a SPIFFE trust domain", trustDomain)
	}
	if e := validation.IsDNS1123Label(namespace); len(e) > 0 {
		return ID{}, fmt.Errorf("namespace %q: %s", namespace, e[0])
	}
	if e := validation.IsDNS1123Subdomain(serviceAccount); len(e) > 0 {
		return ID{}, fmt.Errorf("service account %q: %s", serviceAccount, e[0])
	}
	return ID{trustDomain, namespace, serviceAccount}, nil
}

// Parse reads the URI form. Parse(x.String()) == x for every valid x, and no two strings parse to the same ID.
func Parse(uri string) (ID, error) {
	if len(uri) > 2048 {
		return ID{}, errors.New("SPIFFE ID is longer than 2048 bytes")
	}
	rest, ok := strings.CutPrefix(uri, "spiffe://")
	if !ok {
		return ID{}, fmt.Errorf("%q does not begin with spiffe://", uri)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return ID{}, fmt.Errorf("%q is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>", uri)
	}
	return New(parts[0], parts[2], parts[4])
}

// String returns the URI form.
func (id ID) String() string { return "spiffe://" + id.Principal() }

// Principal returns the form that Istio's policies use: the URI without its scheme.
func (id ID) Principal() string {
	return id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
}

// NamespacePattern and ServiceAccountPattern are regular expressions (RE2) of the names that Kubernetes admits; of their
// lengths they say nothing.
const (
	NamespacePattern      = `[a-z0-9](?:[-a-z0-9]*[a-z0-9])?`
	ServiceAccountPattern = NamespacePattern + `(?:\.` + NamespacePattern + `)*`
)

// Pattern is a regular expression (RE2, to match the whole URI) of the identities of a mesh with the given trust domains:
// nothing but the form that String writes.
func Pattern(trustDomains ...string) string {
	quoted := make([]string, 0, len(trustDomains))
	for _, td := range trustDomains {
		quoted = append(quoted, regexp.QuoteMeta(td))
	}
	return "spiffe://(?:" + strings.Join(quoted, "|") + ")/ns/" + NamespacePattern + "/sa/" + ServiceAccountPattern
}

// IsZero reports whether id is no identity.
func (id ID) IsZero() bool { return id == ID{} }

// FromCertificate returns the identity of an X.509-SVID leaf, which must have exactly one URI SAN (X509-SVID section 2).
func FromCertificate(cert *x509.Certificate) (ID, error) {
	if len(cert.URIs) != 1 {
		return ID{}, fmt.Errorf("certificate has %d URI SANs, an X509-SVID has exactly one", len(cert.URIs))
	}
	return Parse(cert.URIs[0].String())
}

// TokenIssuer is what a JWT-SVID of a trust domain has as its issuer, which SPIFFE leaves open (JWT-SVID, section 3): the ID of the trust domain.
func TokenIssuer(trustDomain string) string { return "spiffe://" + trustDomain }
