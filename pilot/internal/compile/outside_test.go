package compile_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// namespaces are those of the clients of drawn worlds.
var namespaces = []string{"a", "b", "root"}

// entry draws a ServiceEntry, some of whose addresses are also those of pods and Services.
func (d draw) entry(ns, name string) registry.Event {
	e := &registry.ServiceEntry{ID: ns + "/" + name, Namespace: ns, Name: name, Hosts: []string{d.one("x.example", "y.example")}, Resolution: registry.None,
		Created: time.Unix(d.Int64N(3), 0), Ports: []registry.EntryPort{{Number: 80, Name: "http", Protocol: protocol.HTTP, Target: 80}}}
	if d.often() {
		e.Addresses = []string{d.address(registry.IPv4)}
		if d.often() {
			e.Networks = []netip.Prefix{netip.MustParsePrefix(d.one("10.0.0.0/8", "10.0.0.0/30", "10.0.0.2/31", "fd00::/64"))}
		}
		e.Ports = append(e.Ports, registry.EntryPort{Number: 90, Name: "tcp", Protocol: protocol.TCP, Target: 90})
	}
	if ns == "root" && d.often() {
		e.ExportTo = []string{d.one("a", "b", ".", "*")}
	}
	if e.Internal = d.often(); e.Internal && d.often() {
		e.SubjectAltNames = []string{d.one("spiffe://cluster.local/ns/a/sa/s", "spiffe://other/x")}
	} else if e.Internal {
		e.Resolution, e.Endpoints = registry.Static, []registry.EntryEndpoint{{Address: "203.0.113.1", Account: d.one("s", "t")}}
	}
	e.Ignored = !d.often()
	return registry.Event{Kind: registry.ServiceEntries, ID: e.ID, Object: e}
}

// rule draws a DestinationRule for a Service or for what is outside.
func (d draw) rule(ns, name string) registry.Event {
	r := &registry.DestinationRule{ID: ns + "/" + name, Namespace: ns, Name: name, Created: time.Unix(d.Int64N(3), 0),
		Host: d.one("x.example", "y.example", "*.example", "1.a.svc.cluster.local", "2.b.svc.cluster.local"), TLS: d.clientTLS()}
	if d.often() {
		r.PortTLS = map[uint32]*registry.ClientTLS{80: d.clientTLS()}
	}
	if !d.often() {
		r.ExportTo = []string{d.one("a", "b", ".", "*", "~")}
	}
	return registry.Event{Kind: registry.DestinationRules, ID: r.ID, Object: r}
}

func (d draw) clientTLS() *registry.ClientTLS {
	if !d.often() {
		return nil
	}
	t := &registry.ClientTLS{Mode: registry.TLSMode(d.one("SIMPLE", "MUTUAL", "DISABLE", "ISTIO_MUTUAL")), Broken: !d.often()}
	if d.often() {
		t.SubjectAltNames = []string{d.one("spiffe://cluster.local/ns/a/sa/s", "spiffe://other/x")}
	}
	return t
}

// said is all of an Outside in words.
func said(o *compile.Outside) string {
	var out []string
	for _, x := range o.All() {
		out = append(out, fmt.Sprintf("%s by %s, TLS %+v, mutual %v with %v, closed %v", x.Cluster(), x.Entry.ID, x.TLS, x.Mutual, x.Identities, x.Closed))
	}
	for _, ip := range []string{"10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"} {
		for _, port := range []uint32{80, 90} {
			if x := o.Addresses[compile.Address{IP: ip, Port: port}]; x != nil {
				out = append(out, fmt.Sprintf("%s:%d is %s", ip, port, x.Cluster()))
			}
		}
	}
	for _, port := range []uint32{80, 90} {
		for _, f := range []registry.Family{registry.IPv4, registry.IPv6} {
			for _, n := range o.NetworksAt(port, f) {
				out = append(out, fmt.Sprintf("%s:%d is %s", n, port, o.Networks[compile.Network{Prefix: n, Port: port}].Cluster()))
			}
		}
	}
	return fmt.Sprint(strings.Join(out, "\n"), o.Ranges, o.Own)
}

// entryOf is a ServiceEntry for a host at port 80, with an address.
func entryOf(id string, created int64, host, address string, exportTo ...string) *registry.ServiceEntry {
	ns, name, _ := strings.Cut(id, "/")
	e := &registry.ServiceEntry{ID: id, Namespace: ns, Name: name, Created: time.Unix(created, 0), Hosts: []string{host}, Resolution: registry.None, ExportTo: exportTo,
		Ports: []registry.EntryPort{{Number: 80, Name: "http", Protocol: protocol.HTTP, Target: 80}}}
	if address != "" {
		e.Addresses = []string{address}
	}
	return e
}

func ruleFor(id string, created int64, host string, t *registry.ClientTLS, exportTo ...string) *registry.DestinationRule {
	ns, name, _ := strings.Cut(id, "/")
	return &registry.DestinationRule{ID: id, Namespace: ns, Name: name, Created: time.Unix(created, 0), Host: host, TLS: t, ExportTo: exportTo}
}

// Who names a host first has it in a namespace: the namespace itself before the root namespace, then the older. Nobody has what another namespace names.
func TestAHostIsNamedOnceInANamespace(t *testing.T) {
	snap := world(t,
		entryOf("a/young", 2, "x.example", "203.0.113.1"), entryOf("a/old", 1, "x.example", "203.0.113.2"), entryOf("root/x", 0, "x.example", "203.0.113.2"),
		entryOf("b/y", 1, "y.example", ""), entryOf("root/y", 0, "y.example", "", "*"), entryOf("root/z", 0, "z.example", "", "a", "c"),
		entryOf("root/own", 0, "own.example", "", "."), entryOf("b/broken", 0, "x.example", "203.0.113.9"))
	for ns, want := range map[string]string{
		"a":    "x.example by a/old, y.example by root/y, z.example by root/z",
		"b":    "x.example by b/broken, y.example by b/y",
		"c":    "x.example by root/x, y.example by root/y, z.example by root/z",
		"d":    "x.example by root/x, y.example by root/y",
		"root": "own.example by root/own, x.example by root/x, y.example by root/y",
	} {
		var got []string
		for _, x := range compile.CompileOutside(snap, settings, compile.OutsideFor(snap, settings, ns, nil)).All() {
			got = append(got, x.Host+" by "+x.Entry.ID)
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%s: %s, want %s", ns, strings.Join(got, ", "), want)
		}
	}
	at := compile.Address{IP: "203.0.113.2", Port: 80}
	if x := compile.CompileOutside(snap, settings, compile.Whose{Namespace: "a"}).Addresses[at]; x == nil || x.Entry.ID != "a/old" {
		t.Errorf("%s is %+v", at, x)
	}
	if x := compile.CompileOutside(snap, settings, compile.Whose{Namespace: "a"}).Addresses[compile.Address{IP: "203.0.113.1", Port: 80}]; x != nil {
		t.Errorf("an address of an overruled entry is %+v", x)
	}
	for ns, whose := range map[string]string{"a": "a", "b": "b", "c": "c", "d": "*", "e": "*", "root": "root"} {
		if got := compile.OutsideFor(snap, settings, ns, nil); got.Namespace != whose {
			t.Errorf("what is outside for %s is that of %q, want %q", ns, got, whose)
		}
	}
}

// What is the mesh's own has no other name: addresses of Services, in their ranges, of pods, and in EndpointSlices.
func TestAddressesOfTheMeshAreNotNamedAnew(t *testing.T) {
	for _, ip := range []string{"10.96.0.1", "10.97.0.1", "10.0.0.1", "10.0.0.2", "203.0.113.1"} {
		snap := world(t, entryOf("a/x", 0, "x.example", ip), &registry.Service{ID: "b/s", Namespace: "b", Name: "s", ClusterIPs: []string{"10.97.0.1"}},
			&registry.ServiceCIDR{ID: "c", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}}, &registry.Pod{ID: "b/p", Namespace: "b", Name: "p", IPs: []string{"10.0.0.1"}},
			sliceOf("default/kubernetes", "default", "10.0.0.2"), sliceOf("b/thief", "b", "203.0.113.1"))
		_, named := compile.CompileOutside(snap, settings, compile.Whose{Namespace: "a"}).Addresses[compile.Address{IP: ip, Port: 80}]
		if named != (ip == "203.0.113.1") {
			t.Errorf("%s is named: %v", ip, named)
		}
	}
}

// The rule of the clients' namespace holds before that of the service's, and that before one of the root namespace; exportTo narrows.
func TestRulesAreLookedUpByNamespace(t *testing.T) {
	const host = "s.b.svc.cluster.local"
	disable := &registry.ClientTLS{Mode: registry.TLSDisable}
	mutual := func(san string) *registry.ClientTLS {
		return &registry.ClientTLS{Mode: registry.TLSIstioMutual, SubjectAltNames: []string{"spiffe://cluster.local/ns/b/sa/" + san}}
	}
	service := &registry.Service{ID: "b/s", Namespace: "b", Name: "s", ClusterIPs: []string{"10.96.0.1"}, Selector: map[string]string{"app": "s"},
		Ports: []registry.ServicePort{{Name: "web", Number: 80, Protocol: protocol.HTTP}}}
	pod := &registry.Pod{ID: "b/p", Namespace: "b", Name: "p", ServiceAccount: "s", IPs: []string{"10.0.0.1"}, Labels: map[string]string{"app": "s"}, Proxied: true}
	for _, c := range []struct {
		what  string
		rules []*registry.DestinationRule
		want  map[string]string
	}{
		{"none", nil, map[string]string{"a": "sa/s", "b": "sa/s"}},
		{"the root namespace", []*registry.DestinationRule{ruleFor("root/d", 0, host, mutual("r"))}, map[string]string{"a": "always sa/r", "b": "always sa/r"}},
		{"the service's namespace", []*registry.DestinationRule{ruleFor("root/d", 0, host, mutual("r")), ruleFor("b/d", 0, host, disable)}, map[string]string{"a": "plain", "b": "plain"}},
		{"the client's namespace", []*registry.DestinationRule{ruleFor("b/d", 0, host, disable), ruleFor("a/d", 0, host, mutual("x"))}, map[string]string{"a": "always sa/x", "b": "plain", "c": "plain"}},
		{"exported to one", []*registry.DestinationRule{ruleFor("b/d", 0, host, disable, "a")}, map[string]string{"a": "plain", "b": "sa/s", "c": "sa/s"}},
		{"exported to its own", []*registry.DestinationRule{ruleFor("b/d", 0, host, disable, ".")}, map[string]string{"a": "sa/s", "b": "plain"}},
		{"exported to nobody", []*registry.DestinationRule{ruleFor("b/d", 0, host, disable, "~")}, map[string]string{"a": "sa/s", "b": "sa/s"}},
		{"of an uninvolved namespace", []*registry.DestinationRule{ruleFor("c/d", 0, host, disable)}, map[string]string{"a": "sa/s", "b": "sa/s", "c": "plain"}},
		{"the older", []*registry.DestinationRule{ruleFor("b/d", 2, host, disable), ruleFor("b/e", 1, host, mutual("e"))}, map[string]string{"a": "always sa/e"}},
		{"broken", []*registry.DestinationRule{ruleFor("b/d", 2, host, &registry.ClientTLS{Broken: true})}, map[string]string{"a": "always nobody"}},
		{"TLS with applications", []*registry.DestinationRule{ruleFor("a/d", 0, host, &registry.ClientTLS{Mode: registry.TLSSimple})}, map[string]string{"a": "TLS as [s.b.svc.cluster.local s.b.svc]", "b": "sa/s"}},
		{"TLS with applications of other names", []*registry.DestinationRule{ruleFor("b/d", 0, host, &registry.ClientTLS{Mode: registry.TLSMutual, SubjectAltNames: []string{"x"}})}, map[string]string{"a": "TLS as [x]"}},
		{"of something else", []*registry.DestinationRule{ruleFor("b/d", 2, "t.b.svc.cluster.local", disable)}, map[string]string{"a": "sa/s"}},
	} {
		objects := []any{service, pod}
		for _, r := range c.rules {
			objects = append(objects, r)
		}
		snap := world(t, objects...)
		for ns, want := range c.want {
			clients := compile.Everywhere
			if compile.RuledFor(snap, settings, "b/s")[ns] {
				clients = ns
			}
			p := compile.PortFor(snap, settings, service, 80, registry.IPv4, clients)
			got := "plain"
			if p.Mutual {
				got = "nobody"
				if len(p.Identities) > 0 {
					got = strings.TrimPrefix(strings.Join(p.Identities, " "), "spiffe://cluster.local/ns/b/")
				}
			}
			if p.Always {
				got = "always " + got
			}
			if p.TLS != nil {
				got = fmt.Sprint("TLS as ", p.Names())
			}
			if got != want {
				t.Errorf("%s, for %s: %s, want %s", c.what, ns, got, want)
			}
			if direct := compile.PortFor(snap, settings, service, 80, registry.IPv4, ns); direct.Mutual != p.Mutual || direct.Always != p.Always || fmt.Sprint(direct.Identities) != fmt.Sprint(p.Identities) {
				t.Errorf("%s: %s has %+v, and as one of all %+v", c.what, ns, direct, p)
			}
		}
	}
}

// Whose requests an external authorizer judges does not say how it is spoken with; its own namespace does, and the root namespace.
func TestWhoAsksAnAuthorizerDoesNotSayHow(t *testing.T) {
	const host = "s.b.svc.cluster.local"
	set := settings
	set.Authorizers = []authorizer.Provider{{Service: "b/s", Port: 80}}
	service := &registry.Service{ID: "b/s", Namespace: "b", Name: "s", ClusterIPs: []string{"10.96.0.1"}, Selector: map[string]string{"app": "s"}, Ports: []registry.ServicePort{{Name: "web", Number: 80}}}
	disable := &registry.ClientTLS{Mode: registry.TLSDisable}
	snap := world(t, service, ruleFor("a/d", 0, host, disable))
	if p := compile.PortFor(snap, set, service, 80, registry.IPv4, "a"); !p.Mutual || len(compile.RuledFor(snap, set, "b/s")) > 0 {
		t.Errorf("a rule of who asks holds: %+v", p)
	}
	if p := compile.PortFor(world(t, service, ruleFor("b/d", 0, host, disable)), set, service, 80, registry.IPv4, "a"); p.Mutual {
		t.Errorf("a rule of its own namespace does not hold: %+v", p)
	}
	// The cluster by which it is asked has no other for TLS with applications, so it is asked nothing.
	simple := &registry.ClientTLS{Mode: registry.TLSSimple}
	if p := compile.PortFor(world(t, service, ruleFor("b/d", 0, host, simple)), set, service, 80, registry.IPv4, "a"); p.TLS != nil || !p.Always || p.Identities != nil {
		t.Errorf("it is asked in spite of a rule that cannot be enforced: %+v", p)
	}
}

// Who is named by a rule and revoked serves nobody, and an identity is the same under each trust domain of the mesh.
func TestNamedIdentitiesAreRevocableAndKnowAliases(t *testing.T) {
	set := settings
	set.TrustDomainAliases = []string{"old.example"}
	const s, r = "spiffe://cluster.local/ns/b/sa/s", "spiffe://cluster.local/ns/b/sa/r"
	service := &registry.Service{ID: "b/s", Namespace: "b", Name: "s", ClusterIPs: []string{"10.96.0.1"}, Ports: []registry.ServicePort{{Name: "web", Number: 80}}}
	snap := world(t, service, ruleFor("b/d", 0, "s.b.svc.cluster.local", &registry.ClientTLS{Mode: registry.TLSIstioMutual, SubjectAltNames: []string{s, r, "spiffe://partner.example/x"}}), &registry.Revocation{ID: "r", Revocation: revocation.Revocation{Name: "r", Identity: r}})
	got := fmt.Sprint(compile.PortFor(snap, set, service, 80, registry.IPv4, compile.Everywhere).Identities)
	if want := "[" + s + " spiffe://old.example/ns/b/sa/s spiffe://partner.example/x]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// A server of the mesh outside of the cluster is one of the identities that its ServiceEntry names, by itself and by its endpoints' accounts, or of those that a rule names
// instead; each under all trust domains of the mesh, and none that is revoked. What a rule cannot have is closed.
func TestIdentitiesOfServersOutside(t *testing.T) {
	set := settings
	set.TrustDomainAliases = []string{"old.example"}
	const s, t1, r = "spiffe://cluster.local/ns/a/sa/s", "spiffe://cluster.local/ns/a/sa/t", "spiffe://cluster.local/ns/a/sa/r"
	for _, c := range []struct {
		what     string
		internal bool
		sans     []string
		accounts []string
		rule     *registry.ClientTLS
		tls      bool // clients speak it
		want     string
	}{
		{"external", false, nil, nil, nil, false, "as clients speak"},
		{"names of the public", false, []string{"x.example"}, nil, nil, false, "as clients speak"},
		{"named", true, []string{"spiffe://partner.example/x"}, nil, nil, false, "mutual [spiffe://partner.example/x]"},
		{"by account", true, nil, []string{"s"}, nil, false, "mutual [" + s + " spiffe://old.example/ns/a/sa/s]"},
		{"both", true, []string{"spiffe://partner.example/x"}, []string{"s", ""}, nil, false, "mutual [" + s + " spiffe://old.example/ns/a/sa/s spiffe://partner.example/x]"},
		{"revoked", true, []string{r}, nil, nil, false, "mutual []"},
		{"clients' own TLS", true, []string{"spiffe://x/y"}, nil, nil, true, "mutual [spiffe://x/y]"},
		{"ruled", true, []string{s}, nil, &registry.ClientTLS{Mode: registry.TLSIstioMutual, SubjectAltNames: []string{t1}}, false, "mutual [" + t1 + " spiffe://old.example/ns/a/sa/t]"},
		{"DISABLE", true, []string{s}, nil, &registry.ClientTLS{Mode: registry.TLSDisable}, false, "as clients speak"},
		{"SIMPLE", true, []string{s}, nil, &registry.ClientTLS{Mode: registry.TLSSimple}, false, "TLS"},
		{"SIMPLE around clients' TLS", true, []string{s}, nil, &registry.ClientTLS{Mode: registry.TLSSimple}, true, "as clients speak"},
		{"broken", true, []string{s}, nil, &registry.ClientTLS{Broken: true}, false, "closed"},
		{"an external one, by a rule", false, nil, nil, &registry.ClientTLS{Mode: registry.TLSIstioMutual, SubjectAltNames: []string{"spiffe://x/y"}}, false, "mutual [spiffe://x/y]"},
		{"an external one, of nobody", false, []string{"spiffe://x/y"}, nil, &registry.ClientTLS{Mode: registry.TLSIstioMutual}, false, "closed"},
	} {
		e := entryOf("a/x", 0, "x.example", "")
		e.Internal, e.SubjectAltNames, e.Ports[0].TLS = c.internal, c.sans, c.tls
		for _, a := range c.accounts {
			e.Endpoints = append(e.Endpoints, registry.EntryEndpoint{Address: "203.0.113.1", Account: a})
		}
		objects := []any{e, &registry.Revocation{ID: "r", Revocation: revocation.Revocation{Name: "r", Identity: r}}}
		if c.rule != nil {
			objects = append(objects, ruleFor("a/d", 0, "x.example", c.rule))
		}
		x := compile.CompileOutside(world(t, objects...), set, compile.Whose{Namespace: "a"}).Hosts[compile.HostPort{Host: "x.example", Port: 80}]
		got := "as clients speak"
		switch {
		case x.Closed:
			got = "closed"
		case x.Mutual:
			got = fmt.Sprint("mutual ", x.Identities)
		case x.TLS != nil:
			got = "TLS"
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
}

// The names that a server has to prove are, in this order, those of the rule, of the ServiceEntry, and the host's own.
func TestNamesThatAServerProves(t *testing.T) {
	for _, c := range []struct {
		host, sni   string
		rule, entry []string
		names       string
		server      string
	}{
		{"x.example", "", nil, nil, "[x.example]", "x.example"},
		{"x.example", "y.example", nil, nil, "[x.example]", "y.example"},
		{"x.example", "", nil, []string{"e"}, "[e]", "x.example"},
		{"x.example", "", []string{"r"}, []string{"e"}, "[r]", "x.example"},
		{"*.example", "", nil, nil, "[]", ""},
		{"*.example", "", []string{"r"}, nil, "[r]", ""},
		{"*.example", "y.example", nil, nil, "[y.example]", "y.example"},
	} {
		x := compile.External{HostPort: compile.HostPort{Host: c.host}, Entry: &registry.ServiceEntry{SubjectAltNames: c.entry}, TLS: &registry.ClientTLS{ServerName: c.sni, SubjectAltNames: c.rule}}
		if fmt.Sprint(x.Names()) != c.names || x.ServerName() != c.server {
			t.Errorf("%+v: names %v, server name %q", c, x.Names(), x.ServerName())
		}
	}
}
