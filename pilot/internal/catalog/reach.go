package catalog

import (
	"maps"
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// reach is who may reach which service, as layers. A change of a policy moves a service from one layer to another, and nobody hears of
// it who has neither.
type reach struct {
	of map[string][]Layer        // by service ("namespace/name")
	in map[Layer]map[string]bool // the services of a layer
}

func newReach(c *Catalog) *reach {
	r := &reach{of: map[string][]Layer{}, in: map[Layer]map[string]bool{}}
	for s := range c.snap.Services() {
		r.set(s.ID, audienceLayers(compile.AudienceOf(c.snap, c.settings, s)))
	}
	return r
}

// renew looks at a service again, and reports whether others may reach it now.
func (r *reach) renew(c *Catalog, service string) bool {
	var now []Layer
	if s := c.snap.Service(service); s != nil {
		now = audienceLayers(compile.AudienceOf(c.snap, c.settings, s))
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

// audienceLayers are the layers of all those of an audience, in an order that is always the same.
func audienceLayers(a compile.Audience) []Layer {
	if a.Everyone {
		return []Layer{Everyone}
	}
	var out []Layer
	for _, m := range slices.SortedFunc(maps.Keys(a.Members), authz.Member.Compare) {
		out = append(out, ofMember(m))
	}
	return out
}

// ofMember are the subjects of an identity or of a namespace.
func ofMember(m authz.Member) Layer {
	if m.Account == "" {
		return Layer{kind: namespaceLayer, of: m.Namespace}
	}
	return Layer{kind: identityLayer, of: m.String()}
}

// reachOf are the layers of the services that an identity may reach.
func reachOf(namespace, account string) []Layer {
	return []Layer{ofMember(authz.Member{Namespace: namespace, Account: account}), ofMember(authz.Member{Namespace: namespace}), Everyone}
}
