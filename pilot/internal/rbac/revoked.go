package rbac

import (
	rbac "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// PeerSerialKey is where a filter before these has to note the serial number of the client's certificate, which RBAC has no matcher of
// its own for.
const PeerSerialKey = "bulwark.peer_serial"

// Revoked denies each identity, and each certificate, that is revoked; nil if none is.
func Revoked(set compile.Settings, list []revocation.Revocation) *rbac.RBAC {
	if len(list) == 0 {
		return nil
	}
	out := &rbac.RBAC{Action: rbac.RBAC_DENY, Policies: map[string]*rbac.Policy{}}
	for _, r := range list {
		name := "bulwark[revoked]-" + r.Name
		if out.Policies[name] == nil {
			out.Policies[name] = &rbac.Policy{Permissions: []*rbac.Permission{anything()}}
		}
		out.Policies[name].Principals = append(out.Policies[name].Principals, revokedPeer(set, r))
	}
	return out
}

// revokedPeer matches an identity under each of its names, or one certificate of it.
func revokedPeer(set compile.Settings, r revocation.Revocation) *rbac.Principal {
	var names []authz.Match
	for _, uri := range set.Same(r.Identity) {
		names = append(names, authz.Match{Kind: authz.Exact, Value: uri})
	}
	all := []*rbac.Principal{orPrincipal(peers(authz.Clause{Attribute: authz.Principal}, names))}
	if r.Serial != "" {
		all = append(all, &rbac.Principal{Identifier: &rbac.Principal_FilterState{FilterState: &matcher.FilterStateMatcher{
			Key: PeerSerialKey, Matcher: &matcher.FilterStateMatcher_StringMatch{StringMatch: envoy.Exact(r.SerialBytes())}}}})
	}
	return andPrincipal(all)
}

// Nobody lets nobody pass.
func Nobody() *rbac.RBAC { return &rbac.RBAC{Action: rbac.RBAC_ALLOW} }
