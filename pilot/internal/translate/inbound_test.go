package translate_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Of ports it may say that they differ where the listener is the same; of policies it may not.
func TestSameInboundListenerSaysWhatMakingBothWould(t *testing.T) {
	a := spiffe.ID{TrustDomain: "cluster.local", Namespace: "finance", ServiceAccount: "a"}
	b := spiffe.ID{TrustDomain: "cluster.local", Namespace: "finance", ServiceAccount: "b"}
	policy := func(action authz.Action, change func(*authz.Policy)) []authz.Policy {
		p := authz.Policy{Meta: authz.Meta{Namespace: "finance", Name: "p"}, Action: action, Rules: []authz.Rule{{}}}
		change(&p)
		return []authz.Policy{p}
	}
	policies := [][]authz.Policy{
		nil, allowOnly(a), allowOnly(b), append(allowOnly(a), allowOnly(b)...),
		policy(authz.Deny, func(*authz.Policy) {}), policy(authz.Audit, func(*authz.Policy) {}),
		policy(authz.Allow, func(p *authz.Policy) { p.Rules = nil }), policy(authz.Allow, func(p *authz.Policy) { p.DryRun = true }),
		policy(authz.Deny, func(p *authz.Policy) { p.Ignored = true }),
		policy(authz.Deny, func(p *authz.Policy) { p.Rules = allowOnly(a)[0].Rules }), policy(authz.Allow, func(*authz.Policy) {}),
		policy(authz.Deny, func(p *authz.Policy) { // strangers
			p.Rules[0].When = authz.Clauses{{Attribute: authz.Principal, Not: []authz.Match{{Kind: authz.Present}}}}
		}),
	}
	ports := [][]compile.InboundPort{nil}
	for _, change := range []func(*compile.InboundPort){
		func(*compile.InboundPort) {},
		func(p *compile.InboundPort) { p.Number = 81 },
		func(p *compile.InboundPort) { p.Protocol = protocol.HTTP },
		func(p *compile.InboundPort) { p.Mode = authz.Permissive },
		func(p *compile.InboundPort) { p.ServerFirst = true },
		func(p *compile.InboundPort) { p.ServerFirst, p.Mode = true, authz.Permissive },
		func(p *compile.InboundPort) { p.ServiceName = "s" },
	} {
		p := compile.InboundPort{Number: 80, Protocol: protocol.TCP, Mode: authz.Strict}
		change(&p)
		ports = append(ports, []compile.InboundPort{p})
	}
	var all []*compile.Workload
	for _, identity := range []string{a.String(), b.String()} {
		for _, mode := range []authz.TLSMode{authz.Strict, authz.Permissive} {
			for _, ps := range ports {
				for _, pol := range policies {
					all = append(all, &compile.Workload{Class: compile.Class{Namespace: "finance"}, Identity: identity, Ports: ps,
						Other: compile.InboundPort{Protocol: protocol.Auto, Mode: mode}, Policies: pol})
				}
			}
		}
	}
	one, two, web := authorizer.Provider{Name: "one", GRPC: true}, authorizer.Provider{Name: "two", GRPC: true}, authorizer.Provider{Name: "web"}
	for _, of := range [][]authorizer.Provider{{one}, {one, web}, {one, two}, {one, two, web}, {one, two, {Name: "x", GRPC: true}}} {
		all = append(all, &compile.Workload{Class: compile.Class{Namespace: "finance"}, Identity: a.String(), Authorizers: of,
			Other: compile.InboundPort{Protocol: protocol.Auto, Mode: authz.Strict}})
	}
	made := map[*compile.Workload][]byte{}
	for _, w := range all {
		bytes, err := proto.MarshalOptions{Deterministic: true}.Marshal(translate.InboundListener(settings, w))
		if err != nil {
			t.Fatal(err)
		}
		made[w] = bytes
	}
	for _, x := range all {
		for _, y := range all {
			same := translate.SameInboundListener(settings, x, y)
			if equal := string(made[x]) == string(made[y]); same != equal && (same || slices.Equal(x.Ports, y.Ports)) {
				t.Fatalf("said %v of listeners whose being equal is %v:\n%+v\n%+v", same, equal, x, y)
			}
		}
	}
}

// Envoy ends the connections of a filter chain whose bytes have changed, and of the whole listener where anything beside its
// chains and their matcher has. So whatever Services, policies and modes say, a chain that is there is the same chain.
func TestInboundChainsAreTheSameWhateverServicesPoliciesAndModesSay(t *testing.T) {
	a := spiffe.ID{TrustDomain: "cluster.local", Namespace: "finance", ServiceAccount: "a"}
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(n int) int { return r.IntN(n) }
	modes, protocols := []authz.TLSMode{authz.Strict, authz.Permissive, authz.Disable}, []protocol.Protocol{protocol.HTTP, protocol.HTTP2, protocol.TCP, protocol.Auto}
	policies := [][]authz.Policy{nil, allowOnly(a), {{Action: authz.Allow, Rules: []authz.Rule{{}}}}, {{Action: authz.Deny}}, {{Action: authz.Audit, Rules: []authz.Rule{{}}}}}
	bytesOf := func(m proto.Message) string {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	known, rest := map[string]string{}, ""
	for range 2000 {
		w := &compile.Workload{Class: compile.Class{Namespace: "finance"}, Identity: a.String(), Policies: policies[pick(len(policies))],
			Other: compile.InboundPort{Protocol: protocol.Auto, Mode: modes[pick(len(modes))]}}
		for number := range uint32(pick(4)) {
			w.Ports = append(w.Ports, compile.InboundPort{Number: 8080 + number, Protocol: protocols[pick(len(protocols))], Mode: modes[pick(len(modes))],
				ServiceName: []string{"", "payroll", "ledger"}[pick(3)], ServerFirst: pick(5) == 0})
		}
		asks := ""
		if pick(3) == 0 { // by each of whom a connection may be denied
			w.Authorizers, asks = []authorizer.Provider{{Name: "one", GRPC: true}, {Name: "two", GRPC: true}}, "-asks-2"
		}
		l := translate.InboundListener(settings, w)
		for _, c := range l.GetFilterChains() {
			if c.GetName() == "tls-tcp-greeting"+asks { // whom the server may greet is in the handshake
				continue
			}
			b := bytesOf(c)
			if k, ok := known[c.GetName()]; ok && k != b {
				t.Fatalf("chain %s differs for %+v", c.GetName(), w)
			}
			known[c.GetName()] = b
		}
		for _, name := range []string{"tls-http", "tls-tcp" + asks, "tls-tcp-verdict" + asks} {
			if !slices.ContainsFunc(l.GetFilterChains(), func(c *listener.FilterChain) bool { return c.GetName() == name }) {
				t.Fatalf("no chain %s for %+v", name, w)
			}
		}
		l.FilterChains, l.FilterChainMatcher = nil, nil
		for _, f := range l.GetListenerFilters() {
			f.FilterDisabled = nil // at ports of mode DISABLE, of which nothing is looked at before it is forwarded
		}
		if b := bytesOf(l); rest != "" && rest != b {
			t.Fatalf("the listener differs for %+v", w)
		} else {
			rest = b
		}
	}
}
