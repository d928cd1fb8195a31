package compile_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/jwt"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

var settings = compile.Settings{TrustDomain: "cluster.local", RootNamespace: "root"}

// draw makes random objects of a world so small that they have to do with one another.
type draw struct{ *rand.Rand }

func (d draw) one(texts ...string) string { return texts[d.IntN(len(texts))] }
func (d draw) often() bool                { return d.IntN(4) > 0 }
func (d draw) address(f registry.Family) string {
	if f == registry.IPv6 {
		return fmt.Sprint("fd00::", d.IntN(5))
	}
	return fmt.Sprint("10.0.0.", d.IntN(5))
}

// ofSome returns an address of either family, of both, or of none.
func (d draw) ofSome() (out []string) {
	for _, f := range []registry.Family{registry.IPv4, registry.IPv6} {
		if d.IntN(3) > 0 {
			out = append(out, d.address(f))
		}
	}
	return out
}

func (d draw) app() map[string]string {
	if app := d.one("x", "y", ""); app != "" {
		return map[string]string{"app": app}
	}
	return nil
}

// event sets an object or, sometimes, removes it.
func (d draw) event() registry.Event {
	ns, name := d.one("a", "b"), d.one("1", "2", "3")
	e := registry.Event{}
	switch d.IntN(11) {
	case 9:
		e = d.entry(d.one("a", "b", "root"), name)
	case 10:
		e = d.rule(d.one("a", "b", "root"), name)
	case 0:
		e = d.service(ns, name)
	case 1:
		e = d.slice(ns, name)
	case 2, 3:
		e = d.pod(ns, name)
	case 4:
		ns = d.one("a", "b", "root")
		p := authz.Policy{Meta: authz.Meta{Namespace: ns, Name: name}, Action: authz.Deny, Selector: d.app(), Rules: []authz.Rule{{Index: d.IntN(3)}}}
		if d.often() {
			p.Action, p.DryRun, p.Rules = authz.Allow, !d.often(), d.admitting()
		}
		if d.IntN(4) == 0 {
			p.Selector, p.Services = nil, []string{d.one("1", "2", "3")}
		}
		e = registry.Event{Kind: registry.Policies, ID: ns + "/" + name, Object: &registry.Policy{ID: ns + "/" + name, Namespace: ns, Policy: p}}
		if d.IntN(3) == 0 {
			keys := d.one("https://a/keys", "https://b/keys")
			e = registry.Event{Kind: registry.RequestAuths, ID: ns + "/" + name, Object: &registry.RequestAuth{ID: ns + "/" + name, Namespace: ns, Sources: []string{keys},
				Policy: jwt.Policy{Meta: authz.Meta{Namespace: ns, Name: name}, Selector: d.app(), Rules: []jwt.Rule{{Issuer: name, Source: jwt.Source{URI: keys}}}}}}
			switch d.IntN(4) {
			case 0:
				e.Object.(*registry.RequestAuth).Problems = []authz.Problem{{Field: "spec"}}
			case 1:
				e = registry.Event{Kind: registry.KeySets, ID: keys, Object: &registry.KeySet{ID: keys, Keys: d.one("1", "2")}}
			}
		}
	case 5:
		ns = d.one("a", "b", "root")
		modes := []authz.TLSMode{"", authz.Strict, authz.Permissive, authz.Disable}
		p := authz.PeerPolicy{Meta: authz.Meta{Namespace: ns, Name: name}, Mode: modes[d.IntN(4)]}
		if ns != "root" {
			if p.Selector = d.app(); p.Selector != nil && d.often() {
				p.Ports = map[uint32]authz.TLSMode{8080: modes[d.IntN(4)]}
			}
		}
		e = registry.Event{Kind: registry.PeerAuths, ID: ns + "/" + name, Object: &registry.PeerAuth{ID: ns + "/" + name, Namespace: ns, PeerPolicy: p}}
	case 6:
		r := revocation.Revocation{Name: name, Identity: "spiffe://cluster.local/ns/" + ns + "/sa/" + d.one("s", "t"), Serial: d.one("", "", "ab")}
		e = registry.Event{Kind: registry.Revocations, ID: name, Object: &registry.Revocation{ID: name, Revocation: r}}
	case 7:
		node := d.one("m", "n")
		e = registry.Event{Kind: registry.Nodes, ID: node, Object: &registry.Node{ID: node, Zone: d.one("e", "w", "")}}
	case 8:
		c := &registry.ServiceCIDR{ID: name, Prefixes: []netip.Prefix{netip.MustParsePrefix(d.one("10.0.0.0/24", "fd00::/64"))}}
		e = registry.Event{Kind: registry.ServiceCIDRs, ID: name, Object: c}
	}
	if !d.often() {
		e.Object = nil
	}
	return e
}

// admitting are rules for some clients, and sometimes for all.
func (d draw) admitting() (out []authz.Rule) {
	for i := range d.IntN(3) {
		r := authz.Rule{Index: i}
		if d.often() {
			m := authz.Member{Namespace: d.one("a", "b"), Account: d.one("s", "t", "")}
			r.From = []authz.Clauses{{{Attribute: authz.Principal, Values: []authz.Match{{Kind: authz.Exact, Value: m.String()}}, Members: []authz.Member{m}}}}
		}
		out = append(out, r)
	}
	return out
}

func (d draw) service(ns, name string) registry.Event {
	s := &registry.Service{ID: ns + "/" + name, Namespace: ns, Name: name, Local: !d.often(), Selector: d.app(), Created: time.Unix(d.Int64N(3), 0)}
	if s.Headless = d.IntN(2) == 0; !s.Headless {
		s.ClusterIPs = d.ofSome()
	}
	for _, p := range []registry.ServicePort{
		{Name: "web", Number: 80, Target: 8080, Protocol: protocol.HTTP}, {Name: "web", Number: 80, Target: 9090, Protocol: protocol.TCP},
		{Name: "db", Number: 90, TargetName: "db", Protocol: protocol.Auto},
	} {
		if d.often() && !slices.ContainsFunc(s.Ports, func(q registry.ServicePort) bool { return p.Number == q.Number }) {
			s.Ports = append(s.Ports, p)
		}
	}
	return registry.Event{Kind: registry.Services, ID: s.ID, Object: s}
}

func (d draw) slice(ns, name string) registry.Event {
	s := &registry.Slice{ID: ns + "/" + name, Namespace: ns, Name: name, ServiceID: ns + "/" + d.one("1", "2", "3"),
		Family: []registry.Family{registry.IPv4, registry.IPv6}[d.IntN(2)], Ports: []registry.SlicePort{{Name: "web", Number: 8080}}}
	if d.often() {
		s.Ports = append(s.Ports, registry.SlicePort{Name: "db", Number: uint32(9090 + d.IntN(2))})
	}
	for range d.IntN(4) {
		if a := d.address(s.Family); !slices.Contains(s.Addresses, a) {
			s.Addresses = append(s.Addresses, a)
			e := registry.Endpoint{Address: a, Ready: d.often(), Node: d.one("m", "n", "")}
			e.Leaving = !e.Ready && d.often()
			if d.often() {
				e.ForZones = []string{d.one("e", "w")}
				if d.often() {
					e.ForNodes = []string{d.one("m", "n")}
				}
			}
			s.Endpoints = append(s.Endpoints, e)
		}
	}
	return registry.Event{Kind: registry.Slices, ID: s.ID, Object: s}
}

func (d draw) pod(ns, name string) registry.Event {
	p := &registry.Pod{ID: ns + "/" + name, Namespace: ns, Name: name, Labels: d.app(), ServiceAccount: d.one("s", "t"),
		Proxied: d.often(), HostNetwork: !d.often()}
	p.IPs = d.ofSome()
	if d.often() {
		p.Ports = []registry.PodPort{{Name: "db", Number: uint32(9090 + d.IntN(2))}}
	}
	return registry.Event{Kind: registry.Pods, ID: p.ID, Object: p}
}

// meaning is all that compile says of a world, by what an Effects would have to name for it to be looked at again.
type meaning struct {
	services, endpoints map[string]any // by "namespace/name port"
	reach               map[string]any // by "namespace/name"
	frontends           map[string]any // by the text of the address
	outside             map[string]any // by namespace
	classes             map[string]any
	revocations         []*registry.Revocation
}

// places are where clients are, with their node if it matters.
var places = map[compile.Place]string{{}: "", compile.InZone("e"): "zone e", compile.InZone(""): "no zone", compile.OnNode("m"): "m", compile.OnNode("n"): "n"}

func meaningOf(snap *registry.Snapshot, classes map[string]compile.Class) meaning {
	m := meaning{services: map[string]any{}, endpoints: map[string]any{}, reach: map[string]any{}, frontends: map[string]any{}, outside: map[string]any{}, classes: map[string]any{}}
	for _, ns := range namespaces {
		whose := compile.OutsideFor(snap, settings, ns, nil)
		m.outside[ns] = fmt.Sprint(whose, compile.Ruled(snap, ns))
		if whose.Namespace != "" {
			m.outside[ns] = fmt.Sprint(m.outside[ns], said(compile.CompileOutside(snap, settings, whose)))
		}
	}
	for s := range snap.Services() {
		a := compile.AudienceOf(snap, settings, s)
		m.reach[s.ID] = fmt.Sprint(a.Everyone, slices.SortedFunc(maps.Keys(a.Members), authz.Member.Compare))
		for _, p := range compile.ServicePorts(snap, settings, s) {
			p.Service = nil // clusters have its name only
			name := fmt.Sprint(s.ID, " ", p.Number, "/", p.Family)
			m.services[name] = []any{p}
			for _, ns := range append([]string{compile.Everywhere}, namespaces...) {
				ruled := *compile.PortFor(snap, settings, s, p.Number, p.Family, ns)
				ruled.Service = nil
				m.services[name] = append(m.services[name].([]any), ruled)
			}
			candidates := compile.Candidates(snap, settings, s, p.Number, p.Family)
			for place, node := range places {
				m.endpoints[name+" "+node] = fmt.Sprint(compile.SpreadOf(snap, s).Of(place), compile.Nearest(snap, s, candidates, place))
			}
		}
	}
	for i := range 10 {
		for _, port := range []uint32{80, 90, 8080, 9090, 9091} {
			at := compile.Address{IP: fmt.Sprint([]string{"10.0.0.", "fd00::"}[i%2], i/2), Port: port}
			if f := compile.FrontendAt(snap, settings, at); f != nil {
				m.frontends[at.String()] = fmt.Sprintf("%s %s %v %+v", f.Service.Cluster(), f.Service.Protocol, f.Service.Sticky, f.Pod) // what listeners are made of
				for _, ns := range append([]string{compile.Everywhere}, namespaces...) {
					m.frontends[at.String()] = fmt.Sprint(m.frontends[at.String()], compile.FrontendFor(snap, settings, at, ns).Backend())
				}
			}
		}
	}
	for key, c := range classes {
		m.classes[key] = compile.CompileWorkload(snap, settings, c)
	}
	m.revocations = slices.Collect(snap.Revocations())
	return m
}

// differing are the keys of what came, went or changed.
func differing(before, after map[string]any) (out []string) {
	all := maps.Clone(before)
	maps.Copy(all, after)
	for key := range all {
		if !reflect.DeepEqual(before[key], after[key]) {
			out = append(out, key)
		}
	}
	return out
}

// classes are all those that pods drawn can have.
func classes() map[string]compile.Class {
	out := map[string]compile.Class{}
	for d := (draw{rand.New(rand.NewPCG(0, 0))}); len(out) < 2*2*3*3; {
		c := compile.ClassOf(d.pod(d.one("a", "b"), "x").Object.(*registry.Pod))
		out[c.Key()] = c
	}
	return out
}

// Whatever differs after a change must be named, or no proxy would hear of it.
func TestEffectsNameWhateverDiffers(t *testing.T) {
	classes := classes()
	for seed := range uint64(10) {
		d := draw{rand.New(rand.NewPCG(seed, 0))}
		reg, err := registry.New()
		if err != nil {
			t.Fatal(err)
		}
		before := meaningOf(reg.Snapshot(), classes)
		for step := range 150 {
			batch := map[string]registry.Event{} // as the feed has them: one for each object
			for range 1 + d.IntN(3) {
				e := d.event()
				batch[fmt.Sprint(e.Kind, e.ID)] = e
			}
			var events []registry.Event
			for _, key := range slices.Sorted(maps.Keys(batch)) {
				events = append(events, batch[key])
			}
			changes, err := reg.Apply(events)
			if err != nil {
				t.Fatal(err)
			}
			after := meaningOf(reg.Snapshot(), classes)
			if missing := unnamed(compile.EffectsOf(reg.Snapshot(), settings, changes), before, after, classes); len(missing) > 0 {
				t.Fatalf("seed %d, step %d: not named: %q\nchanges: %s", seed, step, missing, cmp.Diff(nil, changes))
			}
			before = after
		}
	}
}

func unnamed(e compile.Effects, before, after meaning, classes map[string]compile.Class) (missing []string) {
	port := func(of map[string]bool, key string) bool {
		id, number, _ := strings.Cut(key, " ")
		_, stays := after.services[key]
		var n uint32
		_, _ = fmt.Sscan(number, &n)
		return of[id] && (stays || e.Ports[id][n])
	}
	for _, key := range differing(before.services, after.services) {
		if !port(e.Services, key) {
			missing = append(missing, "service port "+key)
		}
	}
	for _, key := range differing(before.endpoints, after.endpoints) {
		id, rest, _ := strings.Cut(key, " ")
		number, node, _ := strings.Cut(rest, " ")
		if !port(e.Endpoints, id+" "+number) && !e.Nodes[node] {
			missing = append(missing, "endpoints of "+key)
		}
	}
	for _, id := range differing(before.reach, after.reach) {
		if !e.Reach[id] {
			missing = append(missing, fmt.Sprintf("reach of %s, %v and then %v", id, before.reach[id], after.reach[id]))
		}
	}
	named := map[string]bool{}
	for at := range e.Frontends {
		named[at.String()] = true
	}
	for _, at := range differing(before.frontends, after.frontends) {
		if !named[at] {
			missing = append(missing, "frontend "+at)
		}
	}
	for _, key := range differing(before.classes, after.classes) {
		if !slices.ContainsFunc(e.Classes, func(s compile.ClassSelector) bool { return s.Selects(classes[key]) }) {
			missing = append(missing, fmt.Sprintf("class %+v", classes[key]))
		}
	}
	for _, ns := range differing(before.outside, after.outside) {
		if !e.Outside[ns] && !e.Outside[""] {
			missing = append(missing, fmt.Sprintf("outside of %s: %v and then %v", ns, before.outside[ns], after.outside[ns]))
		}
	}
	if !reflect.DeepEqual(before.revocations, after.revocations) && !e.Revocations {
		missing = append(missing, "revocations")
	}
	return missing
}

// What a change has nothing to do with is not looked at again: the cost of a change does not grow with the mesh.
func TestEffectsNameNothingElse(t *testing.T) {
	app := func(name string) map[string]string { return map[string]string{"app": name} }
	service := func(ns, name, ip string) *registry.Service {
		return &registry.Service{ID: ns + "/" + name, Namespace: ns, Name: name, ClusterIPs: []string{ip}, Selector: app(name),
			Ports: []registry.ServicePort{{Name: "db", Number: 80}}}
	}
	pod := func(name, ip string) *registry.Pod {
		return &registry.Pod{ID: "a/" + name, Namespace: "a", Name: name, IPs: []string{ip}, ServiceAccount: "s", Labels: app(name)}
	}
	snap := world(t, service("a", "x", "10.96.0.1"), service("a", "y", "10.96.0.2"), service("b", "x", "10.96.0.3"), headless("a/h", "a", "h", 0, app("h")),
		sliceOf("a/x", "a", "10.0.0.1"), sliceOf("a/h", "a", "10.0.0.2"), pod("x", "10.0.0.1"), pod("h", "10.0.0.2"), pod("z", "10.0.0.3"),
		&registry.ServiceEntry{ID: "b/network", Namespace: "b", Networks: []netip.Prefix{netip.MustParsePrefix("10.0.9.0/24")}},
		&registry.ServiceEntry{ID: "c/address", Namespace: "c", Addresses: []string{"10.0.9.1"}})
	type names = map[string]bool
	for _, c := range []struct {
		what   string
		change registry.Change
		want   compile.Effects
	}{
		{"a service", registry.Change{Kind: registry.Services, ID: "a/x", New: service("a", "x", "10.96.0.1")}, compile.Effects{
			Services: names{"a/x": true}, Endpoints: names{"a/x": true}, Frontends: map[compile.Address]bool{{IP: "10.96.0.1", Port: 80}: true},
			Ports: map[string]map[uint32]bool{"a/x": {80: true}}, Reach: names{"a/x": true}, Classes: []compile.ClassSelector{{Namespace: "a", Labels: app("x")}}}},
		{"endpoints", registry.Change{Kind: registry.Slices, ID: "a/x-1", New: sliceOf("a/x", "a", "10.0.0.1")}, compile.Effects{Endpoints: names{"a/x": true}}},
		{"endpoints behind a headless service", registry.Change{Kind: registry.Slices, ID: "a/h-1", New: sliceOf("a/h", "a", "10.0.0.2")},
			compile.Effects{Services: names{"a/h": true}, Endpoints: names{"a/h": true}, Frontends: map[compile.Address]bool{{IP: "10.0.0.2", Port: 15432}: true}}},
		{"a pod", registry.Change{Kind: registry.Pods, ID: "a/x", New: pod("x", "10.0.0.1")},
			compile.Effects{Services: names{"a/x": true}, Endpoints: names{"a/x": true}, Reach: names{"a/x": true}}},
		{"a pod without a service", registry.Change{Kind: registry.Pods, ID: "a/z", Old: pod("z", "10.0.0.3")}, compile.Effects{}},
		{"a pod in a network that is named as outside", registry.Change{Kind: registry.Pods, ID: "a/n", New: pod("n", "10.0.9.2")}, compile.Effects{Outside: names{"b": true}}},
		{"a pod at an address that is", registry.Change{Kind: registry.Pods, ID: "a/n", Old: pod("n", "10.0.9.1")}, compile.Effects{Outside: names{"b": true, "c": true}}},
		{"a pod beside it", registry.Change{Kind: registry.Pods, ID: "a/n", New: pod("n", "10.0.8.2")}, compile.Effects{}},
		{"a ServiceEntry", registry.Change{Kind: registry.ServiceEntries, ID: "a/e", New: &registry.ServiceEntry{ID: "a/e", Namespace: "a"}}, compile.Effects{Outside: names{"a": true}}},
		{"a ServiceEntry of the mesh", registry.Change{Kind: registry.ServiceEntries, ID: "root/e", New: &registry.ServiceEntry{ID: "root/e", Namespace: "root"}}, compile.Effects{Outside: names{"": true}}},
		{"a rule for what is outside", registry.Change{Kind: registry.DestinationRules, ID: "a/d", New: &registry.DestinationRule{ID: "a/d", Namespace: "a", Host: "x.example"}},
			compile.Effects{Outside: names{"a": true}}},
		{"a rule for a Service", registry.Change{Kind: registry.DestinationRules, ID: "a/d", New: &registry.DestinationRule{ID: "a/d", Namespace: "a", Host: "x.b.svc.cluster.local"}},
			compile.Effects{Outside: names{"a": true}, Services: names{"b/x": true}, Endpoints: names{"b/x": true}, Frontends: map[compile.Address]bool{{IP: "10.96.0.3", Port: 80}: true}}},
		{"a node", registry.Change{Kind: registry.Nodes, ID: "n", New: &registry.Node{ID: "n", Zone: "e"}}, compile.Effects{Nodes: names{"n": true}}},
		{"a namespace", registry.Change{Kind: registry.Namespaces, ID: "a", New: &registry.Namespace{ID: "a"}}, compile.Effects{}},
		{"a policy", registry.Change{Kind: registry.Policies, ID: "a/p", New: &registry.Policy{ID: "a/p", Namespace: "a", Policy: authz.Policy{Selector: app("x")}}},
			compile.Effects{Classes: []compile.ClassSelector{{Namespace: "a", Labels: app("x")}}}},
		{"a policy that allows", registry.Change{Kind: registry.Policies, ID: "a/p", New: &registry.Policy{ID: "a/p", Namespace: "a", Policy: authz.Policy{Action: authz.Allow, Selector: app("x")}}},
			compile.Effects{Reach: names{"a/x": true}, Classes: []compile.ClassSelector{{Namespace: "a", Labels: app("x")}}}},
		{"a policy of the mesh", registry.Change{Kind: registry.Policies, ID: "root/p", New: &registry.Policy{ID: "root/p", Namespace: "root"}},
			compile.Effects{Classes: []compile.ClassSelector{{}}}},
		{"modes of a namespace", registry.Change{Kind: registry.PeerAuths, ID: "b/p", New: &registry.PeerAuth{ID: "b/p", Namespace: "b"}},
			compile.Effects{Endpoints: names{"b/x": true}, Classes: []compile.ClassSelector{{Namespace: "b"}}}},
		{"a revoked certificate", registry.Change{Kind: registry.Revocations, ID: "r", New: &registry.Revocation{ID: "r", Revocation: revocation.Revocation{
			Identity: "spiffe://cluster.local/ns/a/sa/s", Serial: "ab"}}}, compile.Effects{Revocations: true}},
	} {
		got := compile.EffectsOf(snap, settings, []registry.Change{c.change})
		if d := cmp.Diff(c.want, got, cmpopts.IgnoreUnexported(compile.Effects{}), cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s: %s", c.what, d)
		}
	}
}

// A pod that leaves a headless service in the moment in which the service loses a port takes the listener of that port along:
// neither change alone says that it was there.
func TestPodAndPortOfAHeadlessServiceGoTogether(t *testing.T) {
	set := compile.Settings{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"}
	before, after := headless("a/db", "a", "db", 1, map[string]string{"app": "db"}), headless("a/db", "a", "db", 1, map[string]string{"app": "db"})
	after.Ports = nil
	pod := func(app string) *registry.Pod {
		return &registry.Pod{ID: "a/db-0", Namespace: "a", Name: "db-0", IPs: []string{"10.0.0.1"}, ServiceAccount: "db", Labels: map[string]string{"app": app}}
	}
	e := compile.EffectsOf(world(t, after, sliceOf("a/db", "a", "10.0.0.1"), pod("other")), set, []registry.Change{
		{Kind: registry.Services, ID: "a/db", Old: before, New: after}, {Kind: registry.Pods, ID: "a/db-0", Old: pod("db"), New: pod("other")}})
	if !e.Frontends[compile.Address{IP: "10.0.0.1", Port: 15432}] {
		t.Errorf("the listeners that may change are %v", e.Frontends)
	}
}
