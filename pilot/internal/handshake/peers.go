package handshake

import (
	"slices"

	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Members are the identities of the mesh, and nothing that merely begins like one.
func Members(trustDomains []string) []*matcher.StringMatcher {
	return []*matcher.StringMatcher{envoy.Pattern(spiffe.Pattern(trustDomains...))}
}

// nobody is a name no certificate of a mesh has, for services whose servers are not known: any server is refused.
const nobody = "spiffe://nobody.invalid/ns/none/sa/none"

// restricted reports whether ALLOW policies say who may connect.
func restricted(policies []authz.Policy) bool {
	return slices.ContainsFunc(policies, func(p authz.Policy) bool { return p.Action == authz.Allow && !p.Ignored && !p.DryRun })
}

// Admitted are the peers that the ALLOW policies could let connect, for ports whose server speaks before network RBAC can
// decide: others fail in the handshake. They are nil if no policy says who may connect, and everyone of the mesh if a rule asks
// for no identity. What a DENY policy denies is cut off at its first byte, after the server's greeting.
func Admitted(policies []authz.Policy, trustDomains []string) []*matcher.StringMatcher {
	if !restricted(policies) {
		return nil
	}
	var out []*matcher.StringMatcher
	for _, p := range policies {
		if p.Action != authz.Allow || p.Ignored || p.DryRun {
			continue
		}
		tcp := p.TCP()
		for _, r := range tcp.Rules {
			if r.Never {
				continue
			}
			peers, ok := peersOf(r)
			if !ok {
				return Members(trustDomains)
			}
			out = append(out, peers...)
		}
	}
	if len(out) == 0 {
		return []*matcher.StringMatcher{envoy.Exact(nobody)}
	}
	return out
}

// peersOf are the identities outside of which a rule cannot match.
func peersOf(r authz.Rule) ([]*matcher.StringMatcher, bool) {
	if m, ok := identities(r.When); ok {
		return m, true
	}
	var out []*matcher.StringMatcher
	for _, from := range r.From {
		m, ok := identities(from)
		if !ok {
			return nil, false
		}
		out = append(out, m...)
	}
	return out, len(r.From) > 0
}

func identities(clauses authz.Clauses) ([]*matcher.StringMatcher, bool) {
	for _, c := range clauses {
		if !c.Attribute.Identity() || len(c.Values) == 0 {
			continue
		}
		var out []*matcher.StringMatcher
		for _, m := range c.Values {
			out = append(out, rbac.Text(m, false))
		}
		return out, true
	}
	return nil, false
}
