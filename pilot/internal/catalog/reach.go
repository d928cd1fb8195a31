package catalog

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// reach is who may reach which service, as layers. A change of a policy moves a service from one layer to another, and nobody hears of
// it who has neither.
type reach struct {
	of map[string][]Layer        // by service ("namespace/name")
	in map[Layer]map[string]bool // the services of a layer
}

// scope is an identity whose workloads may know, of the services that it may reach, only those that a Sidecar names.
type scope struct {
	settings           compile.Settings
	sidecar            *registry.Sidecar
	namespace, account string
}

func newReach(c *Catalog) *reach {
	r := &reach{of: map[string][]Layer{}, in: map[Layer]map[string]bool{}}
	for s := range c.snap.Services() {
		r.set(s.ID, c.audienceLayers(s))
	}
	return r
}

// open adds the layer of a scope to the services that are in it.
func (r *reach) open(c *Catalog, l Layer) {
	for s := range c.snap.Services() {
		if c.scopes[l].has(s, r.of[s.ID]) {
			r.set(s.ID, append(slices.Clone(r.of[s.ID]), l))
		}
	}
}

// close removes the layer of a scope.
func (r *reach) close(l Layer) {
	for service := range maps.Clone(r.in[l]) {
		r.set(service, slices.DeleteFunc(slices.Clone(r.of[service]), func(o Layer) bool { return o == l }))
	}
}

// has reports whether a service is in the scope, given the layers of its audience.
func (s *scope) has(service *registry.Service, audience []Layer) bool {
	reachable := slices.ContainsFunc(reachOf(s.namespace, s.account), func(l Layer) bool { return slices.Contains(audience, l) })
	return reachable && (compile.Imports(s.sidecar, s.namespace, service) || s.settings.Asks(service.ID))
}

// renew looks at a service again, and reports whether others may reach it now.
func (r *reach) renew(c *Catalog, service string) bool {
	var now []Layer
	if s := c.snap.Service(service); s != nil {
		now = c.audienceLayers(s)
	}
	if slices.Equal(r.of[service], now) {
		return false
	}
	r.set(service, now)
	return true
}

func (r *reach) set(service string, now []Layer) {
	for _, l := range r.of[service] {
		if delete(r.in[l], service); len(r.in[l]) == 0 {
			delete(r.in, l)
		}
	}
	delete(r.of, service)
	if len(now) == 0 {
		return
	}
	r.of[service] = now
	for _, l := range now {
		if r.in[l] == nil {
			r.in[l] = map[string]bool{}
		}
		r.in[l][service] = true
	}
}

// audienceLayers are the layers of all those who may know a service, in an order that is always the same.
func (c *Catalog) audienceLayers(s *registry.Service) (out []Layer) {
	a := compile.AudienceOf(c.snap, c.settings, s)
	if a.Everyone {
		out = append(out, Everyone)
	}
	for _, m := range slices.SortedFunc(maps.Keys(a.Members), authz.Member.Compare) {
		out = append(out, ofMember(m))
	}
	var scopes []Layer
	for l, scope := range c.scopes {
		if scope.has(s, out) {
			scopes = append(scopes, l)
		}
	}
	slices.SortFunc(scopes, func(a, b Layer) int { return cmp.Compare(a.of, b.of) })
	return append(out, scopes...)
}

// ofMember are the subjects of an identity or of a namespace.
func ofMember(m authz.Member) Layer {
	if m.Account == "" {
		return Layer{kind: namespaceLayer, of: m.Namespace}
	}
	return Layer{kind: identityLayer, of: m.String()}
}

// ofScope are the subjects of an identity that a Sidecar restricts to the same services.
func ofScope(sidecar *registry.Sidecar, namespace, account string) Layer {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", sidecar.Egress))
	return Layer{kind: scopeLayer, of: hex.EncodeToString(sum[:12]) + "/" + authz.Member{Namespace: namespace, Account: account}.String()}
}

// reachOf are the layers of the services that an identity may reach.
func reachOf(namespace, account string) []Layer {
	return []Layer{ofMember(authz.Member{Namespace: namespace, Account: account}), ofMember(authz.Member{Namespace: namespace}), Everyone}
}
