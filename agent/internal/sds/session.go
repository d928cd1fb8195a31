package sds

import (
	"encoding/hex"
	"slices"
	"sync"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Session is the secrets of one stream, and what its client has taken of them. It is the deltaxds.Source of a stream, or
// a part of one for streams that carry secrets among other things.
type Session struct {
	*Server
	client *identity.Client

	mu   sync.Mutex
	made map[string]content // as last made, by name
	has  map[string]content // as the client has it
}

// content is where a version of a secret comes from.
type content struct {
	version  string
	trusts   bool // it is the trust bundle
	sequence uint64
	issuer   string
}

// Open begins a session. Close it with its stream.
func (s *Server) Open() *Session {
	return &Session{Server: s, client: s.pod.Connect(identity.BySocket), made: map[string]content{}, has: map[string]content{}}
}

// Close ends the session: who has no stream counts for nothing.
func (s *Session) Close() { s.client.Close() }

func trustDomain(id spiffe.ID) string { return "spiffe://" + id.TrustDomain }

func (s *Server) isCertificate(name string) bool {
	return name == mesh.WorkloadSecretName || name == s.pod.ID.String()
}

func (s *Server) isBundle(name string) bool {
	return name == mesh.RootCASecretName || name == trustDomain(s.pod.ID)
}

// serves says whether the pod has a secret of the name. It has no other pod's.
func (s *Server) serves(name string) bool { return s.isCertificate(name) || s.isBundle(name) }

// Resource implements deltaxds.Source.
func (s *Session) Resource(typeURL, name string) (*deltaxds.Resource, bool) {
	if typeURL != deltaxds.SecretType || !s.serves(name) {
		return nil, true
	}
	r, from, err := s.make(name)
	if err != nil {
		s.log.Error("secret for a proxy", "name", name, "pod", s.pod.String(), "error", err)
		return nil, false
	}
	if r == nil {
		return nil, false // it is waited for
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made[name] = from
	if s.has[name].version == from.version { // a bundle may change without its roots: the client has this one as well
		s.has[name] = from
		s.report()
	}
	return r, true
}

// make returns nil when there is nothing yet to make the secret of.
func (s *Server) make(name string) (*deltaxds.Resource, content, error) {
	if s.isBundle(name) {
		trust, _, pending := s.bundle.Current()
		if pending != nil {
			return nil, content{}, nil
		}
		r, err := roots(name, trust.X509)
		if err != nil {
			return nil, content{}, err
		}
		return r, content{version: r.Version, trusts: true, sequence: trust.Sequence}, nil
	}
	current, pending := s.pod.GetX509SVID()
	if pending != nil {
		return nil, content{}, nil
	}
	r, err := certificate(name, current)
	if err != nil {
		return nil, content{}, err
	}
	return r, content{version: r.Version, issuer: hex.EncodeToString(current.Certificates[0].AuthorityKeyId)}, nil
}

// Wildcard implements deltaxds.Source.
func (s *Session) Wildcard(string) ([]string, bool) {
	return []string{mesh.WorkloadSecretName, mesh.RootCASecretName}, true
}

// Subscribed implements deltaxds.Source.
func (s *Session) Subscribed(_ string, _, removed []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range removed {
		delete(s.has, name)
	}
	s.report()
}

// Took implements deltaxds.Witness.
func (s *Session) Took(typeURL string, versions map[string]string) {
	if typeURL != deltaxds.SecretType {
		return
	}
	for name := range versions {
		s.mu.Lock()
		_, known := s.made[name]
		s.mu.Unlock()
		if !known {
			s.Resource(typeURL, name) // a client that was here before: it may have what there is now
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, version := range versions {
		switch from := s.made[name]; {
		case !s.serves(name):
		case from.version == version:
			s.has[name] = from
		default: // from before this agent began; anything it could be is older
			s.has[name] = content{version: version, trusts: s.isBundle(name)}
		}
	}
	s.report()
}

// Refused implements deltaxds.Witness.
func (s *Session) Refused(typeURL string, versions map[string]string, reason string) {
	if typeURL != deltaxds.SecretType {
		return
	}
	for name := range versions {
		s.log.Error("a proxy refuses a secret and keeps the one before", "name", name, "pod", s.pod.String(), "reason", reason)
	}
}

// report is called with mu held.
func (s *Session) report() {
	var h identity.Held
	for _, c := range s.has {
		switch {
		case c.trusts && !h.Trusts:
			h.Trusts, h.Sequence = true, c.sequence
		case c.trusts:
			h.Sequence = min(h.Sequence, c.sequence)
		case c.issuer != "" && !slices.Contains(h.Issuers, c.issuer):
			h.Issuers = append(h.Issuers, c.issuer)
		}
	}
	s.client.Holds(h)
}
