// Package mtls makes the TLS configurations and gRPC options with which the components speak to each other: TLS 1.3
// only, no session resumption, peers authorized by their SPIFFE ID, and a bound on everything a peer can make us hold.
package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Authorizer decides by its SPIFFE ID whether a peer with a valid certificate may connect.
type Authorizer = tlsconfig.Authorizer

// OneOf authorizes exactly the given identities.
func OneOf(ids ...spiffe.ID) Authorizer {
	allowed := make(map[spiffe.ID]bool, len(ids))
	for _, id := range ids {
		allowed[id] = true
	}
	return parsed(func(id spiffe.ID) error {
		if !allowed[id] {
			return fmt.Errorf("%s is not allowed here", id)
		}
		return nil
	})
}

// MemberOf authorizes every service account of the trust domains.
func MemberOf(trustDomains ...string) Authorizer {
	return parsed(func(id spiffe.ID) error {
		if !slices.Contains(trustDomains, id.TrustDomain) {
			return fmt.Errorf("%s is not of trust domain %s", id, strings.Join(trustDomains, ", "))
		}
		return nil
	})
}

// parsed refuses identities that are not service accounts before it asks allow.
func parsed(allow func(spiffe.ID) error) Authorizer {
	return func(uri spiffeid.ID, _ [][]*x509.Certificate) error {
		id, err := spiffe.Parse(uri.String())
		if err != nil {
			return err
		}
		if id.IsZero() {
			return errors.New("peer has no identity")
		}
		return allow(id)
	}
}

// Server returns the configuration of a server that demands a client certificate which authorize accepts.
func Server(svid x509svid.Source, bundle x509bundle.Source, authorize Authorizer) *tls.Config {
	return harden(tlsconfig.MTLSServerConfig(svid, bundle, authorize))
}

// ServerWithoutClientCert returns the configuration of a server whose callers prove themselves by a token, or not at all.
func ServerWithoutClientCert(svid x509svid.Source) *tls.Config {
	return harden(tlsconfig.TLSServerConfig(svid))
}

// ServerWithOptionalClientCert returns the configuration of a server whose callers prove themselves by a token or by a
// certificate: a certificate that is presented and that authorize does not accept ends the handshake.
func ServerWithOptionalClientCert(svid x509svid.Source, bundle x509bundle.Source, authorize Authorizer) *tls.Config {
	c := tlsconfig.TLSServerConfig(svid)
	verify := tlsconfig.VerifyPeerCertificate(bundle, authorize)
	c.ClientAuth = tls.RequestClientCert
	c.VerifyPeerCertificate = func(raw [][]byte, verified [][]*x509.Certificate) error {
		if len(raw) == 0 {
			return nil
		}
		return verify(raw, verified)
	}
	return harden(c)
}

// Client returns the configuration of a client that has an SVID and talks only to servers that authorize accepts.
func Client(svid x509svid.Source, bundle x509bundle.Source, authorize Authorizer) *tls.Config {
	return harden(tlsconfig.MTLSClientConfig(svid, bundle, authorize))
}

// ClientWithoutCert returns the configuration of a client that has no SVID yet.
func ClientWithoutCert(bundle x509bundle.Source, authorize Authorizer) *tls.Config {
	return harden(tlsconfig.TLSClientConfig(bundle, authorize))
}

// harden allows TLS 1.3 only and turns session tickets off: a resumed session skips the verification of the peer, so it
// would outlive the bundle it was checked with.
func harden(c *tls.Config) *tls.Config {
	c.MinVersion = tls.VersionTLS13
	c.SessionTicketsDisabled = true
	c.ClientSessionCache = nil
	return c
}
