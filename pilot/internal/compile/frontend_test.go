package compile_test

import (
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/redirect"
)

// world has the objects that are given, by kind and name.
func world(t *testing.T, objects ...any) *registry.Snapshot {
	t.Helper()
	reg, err := registry.New()
	if err != nil {
		t.Fatal(err)
	}
	var events []registry.Event
	for _, o := range objects {
		switch x := o.(type) {
		case *registry.Service:
			events = append(events, registry.Event{Kind: registry.Services, ID: x.ID, Object: x})
		case *registry.Slice:
			events = append(events, registry.Event{Kind: registry.Slices, ID: x.ID, Object: x})
		case *registry.Policy:
			events = append(events, registry.Event{Kind: registry.Policies, ID: x.ID, Object: x})
		case *registry.Pod:
			events = append(events, registry.Event{Kind: registry.Pods, ID: x.ID, Object: x})
		case *registry.PeerAuth:
			events = append(events, registry.Event{Kind: registry.PeerAuths, ID: x.ID, Object: x})
		case *registry.Node:
			events = append(events, registry.Event{Kind: registry.Nodes, ID: x.ID, Object: x})
		case *registry.ServiceEntry:
			events = append(events, registry.Event{Kind: registry.ServiceEntries, ID: x.ID, Object: x})
		case *registry.DestinationRule:
			events = append(events, registry.Event{Kind: registry.DestinationRules, ID: x.ID, Object: x})
		case *registry.ServiceCIDR:
			events = append(events, registry.Event{Kind: registry.ServiceCIDRs, ID: x.ID, Object: x})
		case *registry.Sidecar:
			events = append(events, registry.Event{Kind: registry.Sidecars, ID: x.ID, Object: x})
		case *registry.Revocation:
			events = append(events, registry.Event{Kind: registry.Revocations, ID: x.ID, Object: x})
		}
	}
	if _, err := reg.Apply(events); err != nil {
		t.Fatal(err)
	}
	return reg.Snapshot()
}

func headless(id, namespace, name string, age int, selector map[string]string) *registry.Service {
	return &registry.Service{ID: id, Namespace: namespace, Name: name, Headless: true, Selector: selector, Created: time.Unix(int64(1000-age), 0),
		Ports: []registry.ServicePort{{Name: "db", Number: 5432, Target: 15432, Protocol: protocol.TCP}}}
}

func sliceOf(service, namespace string, addresses ...string) *registry.Slice {
	s := &registry.Slice{ID: service + "-1", Namespace: namespace, Name: "1", ServiceID: service, Addresses: addresses, Ports: []registry.SlicePort{{Name: "db", Number: 15432}}}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, registry.Endpoint{Address: a, Ready: true})
	}
	return s
}

// An address is a service's only if it is its own: a cluster IP, or that of a pod which stands behind it. Whoever else writes it into
// a slice gains nothing, and what is nobody's is passed through.
func TestFrontendIsWhoseTheAddressIs(t *testing.T) {
	db := map[string]string{"app": "db"}
	pod := func(name, namespace, ip string, change ...func(*registry.Pod)) *registry.Pod {
		p := &registry.Pod{ID: namespace + "/" + name, Namespace: namespace, Name: name, IPs: []string{ip}, ServiceAccount: "db", Labels: db, Proxied: true}
		for _, c := range change {
			c(p)
		}
		return p
	}
	snap := world(t,
		headless("a/db", "a", "db", 1, db), sliceOf("a/db", "a", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "203.0.113.9", "10.96.0.1"),
		headless("a/older", "a", "older", 9, nil), sliceOf("a/older", "a", "10.0.0.2"),
		headless("b/thief", "b", "thief", 99, nil), sliceOf("b/thief", "b", "10.0.0.1", "203.0.113.9"),
		&registry.Service{ID: "a/web", Namespace: "a", Name: "web", ClusterIPs: []string{"10.96.0.1"}, Ports: []registry.ServicePort{{Name: "http", Number: 15432, Protocol: protocol.HTTP}}},
		pod("db-0", "a", "10.0.0.1"),
		pod("db-1", "a", "10.0.0.2", func(p *registry.Pod) { p.Proxied = false }),
		pod("db-2", "a", "10.0.0.3", func(p *registry.Pod) { p.HostNetwork = true }),
		pod("other", "a", "10.0.0.4", func(p *registry.Pod) { p.Labels = map[string]string{"app": "other"} }),
		&registry.PeerAuth{ID: "a/p", Namespace: "a", PeerPolicy: authz.PeerPolicy{Meta: authz.Meta{Namespace: "a", Name: "p"}, Mode: authz.Strict}},
	)
	for _, c := range []struct {
		what, address string
		port          uint32
		service       string // "" for nobody's
		plain         bool
	}{
		{"a pod of the service, at the port where it listens", "10.0.0.1", 15432, "db", false},
		{"a pod, at the Service's number, where nobody listens", "10.0.0.1", 5432, "", false},
		{"a pod without a proxy, which an older service names, too", "10.0.0.2", 15432, "older", true},
		{"a pod that shares its node's address", "10.0.0.3", 15432, "", false},
		{"a pod that the service does not select", "10.0.0.4", 15432, "", false},
		{"an address outside", "203.0.113.9", 15432, "", false},
		{"another service's cluster IP in a slice", "10.96.0.1", 15432, "web", false},
	} {
		f := compile.FrontendAt(snap, compile.Settings{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"}, compile.Address{IP: c.address, Port: c.port})
		switch {
		case f == nil && c.service != "":
			t.Errorf("%s: nobody's", c.what)
		case f != nil && f.Service.Service.Name != c.service:
			t.Errorf("%s: is %s's, want %q", c.what, f.Service.Service.Name, c.service)
		case f != nil && (f.Pod != nil && f.Pod.Plain) != c.plain:
			t.Errorf("%s: in plaintext: %v", c.what, f.Pod.Plain)
		}
	}
}

// A port that a pod's proxy does not have is the application's own: other proxies speak plaintext to it, behind a Service and at the pod's own address.
func TestPortsThatAreLeftOutAreCalledInPlaintext(t *testing.T) {
	db := map[string]string{"app": "db"}
	set := compile.Settings{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"}
	for options, plain := range map[string]bool{"{}": false, `{"excludeInboundPorts":[15432]}`: true, `{"excludeInboundPorts":[80]}`: false, `{"includeInboundPorts":[80]}`: true} {
		o, err := redirect.Parse(options)
		if err != nil {
			t.Fatal(err)
		}
		s := headless("a/db", "a", "db", 1, db)
		snap := world(t, s, sliceOf("a/db", "a", "10.0.0.1"), &registry.Pod{ID: "a/db-0", Namespace: "a", Name: "db-0", IPs: []string{"10.0.0.1"}, ServiceAccount: "db", Labels: db, Proxied: true, Redirect: o})
		if f := compile.FrontendAt(snap, set, compile.Address{IP: "10.0.0.1", Port: 15432}); f == nil || f.Pod.Plain != plain {
			t.Errorf("%s: at the pod's address: %+v", options, f)
		}
		if c := compile.Candidates(snap, set, s, 5432, registry.IPv4); len(c) != 1 || c[0].Plain != plain {
			t.Errorf("%s: behind the Service: %+v", options, c)
		}
	}
}

// Two services that say different things of one port of a pod declare nothing.
func TestPortOfTwoServicesIsWhatBothSay(t *testing.T) {
	service := func(name string, p protocol.Protocol, age int) *registry.Service {
		return &registry.Service{ID: "a/" + name, Namespace: "a", Name: name, Selector: map[string]string{"app": "db"}, Created: time.Unix(int64(1000-age), 0),
			Ports: []registry.ServicePort{{Name: "x", Number: 80, Target: 8080, Protocol: p, ServerFirst: p == protocol.TCP}}}
	}
	for _, c := range []struct{ one, two, want protocol.Protocol }{
		{protocol.HTTP, protocol.HTTP, protocol.HTTP}, {protocol.HTTP, protocol.HTTP2, protocol.HTTP}, {protocol.TCP, protocol.HTTP, protocol.Auto},
		{protocol.Auto, protocol.HTTP, protocol.Auto}, {protocol.TCP, protocol.TCP, protocol.TCP},
	} {
		snap := world(t, service("one", c.one, 2), service("two", c.two, 1))
		w := compile.CompileWorkload(snap, compile.Settings{RootNamespace: "bulwark-system"}, compile.Class{Namespace: "a", Labels: map[string]string{"app": "db"}})
		if p := w.Ports[0]; len(w.Ports) != 1 || p.Protocol != c.want || p.ServiceName != "one" || p.ServerFirst != (c.want == protocol.TCP) {
			t.Errorf("%s and %s: %+v, want %s", c.one, c.two, w.Ports, c.want)
		}
	}
}
