package translate_test

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
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
	}
	ports := [][]compile.InboundPort{nil}
	for _, change := range []func(*compile.InboundPort){
		func(*compile.InboundPort) {},
		func(p *compile.InboundPort) { p.Number = 81 },
		func(p *compile.InboundPort) { p.Protocol = registry.HTTP },
		func(p *compile.InboundPort) { p.Mode = authz.Permissive },
		func(p *compile.InboundPort) { p.ServerFirst = true },
		func(p *compile.InboundPort) { p.ServiceName = "s" },
	} {
		p := compile.InboundPort{Number: 80, Protocol: registry.TCP, Mode: authz.Strict}
		change(&p)
		ports = append(ports, []compile.InboundPort{p})
	}
	var all []*compile.Workload
	for _, identity := range []string{a.String(), b.String()} {
		for _, mode := range []authz.TLSMode{authz.Strict, authz.Permissive} {
			for _, ps := range ports {
				for _, pol := range policies {
					all = append(all, &compile.Workload{Class: compile.Class{Namespace: "finance"}, Identity: identity, Ports: ps,
						Other: compile.InboundPort{Protocol: registry.Auto, Mode: mode}, Policies: pol})
				}
			}
		}
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
