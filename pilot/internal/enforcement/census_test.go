package enforcement

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/push"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	pilotv1 "github.com/bulwark-mesh/bulwark/pkg/api/pilot/v1"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// world has two Pilots that are ready and one that is not, a policy, and pods on three nodes: the last has no agent.
const world = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop, generation: 3}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio}}
spec: {nodeName: n1}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: web-3, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio}}
spec: {nodeName: n3}
status: {podIP: 10.0.0.3}
---
apiVersion: v1
kind: Pod
metadata: {name: starting, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio}}
spec: {nodeName: n3}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: shop, labels: {app: web}}
spec: {nodeName: n3}
status: {podIP: 10.0.0.4}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shop, labels: {app: other, security.istio.io/tlsMode: istio}}
spec: {nodeName: n3}
status: {podIP: 10.0.0.5}
---
apiVersion: v1
kind: Pod
metadata: {name: pilot-a, namespace: bulwark-system}
spec: {nodeName: n1}
status: {podIP: 10.0.1.1}
---
apiVersion: v1
kind: Pod
metadata: {name: pilot-b, namespace: bulwark-system}
spec: {nodeName: n1}
status: {podIP: 10.0.1.2}
---
apiVersion: v1
kind: Pod
metadata: {name: pilot-0, namespace: bulwark-system}
spec: {nodeName: n1}
status: {podIP: 10.0.1.3}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: pilot-x, namespace: bulwark-system, labels: {kubernetes.io/service-name: bulwark-pilot}}
addressType: IPv4
endpoints:
- {addresses: [10.0.1.2]}
- {addresses: [10.0.1.1], conditions: {ready: true}}
- {addresses: [10.0.1.3], conditions: {ready: false}}
`

var policy = registry.PolicyRef{Kind: registry.Policies, ID: "shop/p"}

// known is what a Pilot knows.
type known struct {
	policies []push.Enforcement
	nodes    []string
}

func (k known) Enforcement([]registry.PolicyRef, int) []push.Enforcement { return k.policies }
func (k known) Nodes() []string                                          { return k.nodes }

// peers answer by name; those that are not there do not.
type peers map[string]known

func (p peers) Count(_ context.Context, pod *registry.Pod, _ []registry.PolicyRef, _ int) (Answer, error) {
	k, ok := p[pod.Name]
	if !ok {
		return Answer{}, errors.New("away")
	}
	return Answer{k.policies, k.nodes}, nil
}

func snapshotOf(t *testing.T, text string) func() *registry.Snapshot {
	t.Helper()
	reg, err := fixture.Load([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return reg.Snapshot
}

func TestCensusIsOfAllPilots(t *testing.T) {
	snap := snapshotOf(t, world)
	of := func(generation int64, taken, proxies int, lagging ...string) []push.Enforcement {
		e := push.Enforcement{Generation: generation, Proxies: proxies, Taken: taken}
		for _, l := range lagging {
			e.Lagging = append(e.Lagging, push.Laggard{Proxy: l})
		}
		return []push.Enforcement{e}
	}
	const away = " web-3.shop(the agent of node n3 is connected to no Pilot that answers)"
	for name, c := range map[string]struct {
		own   known
		peers peers
		want  string
	}{
		"both":             {known{of(3, 1, 2, "z.shop"), []string{"n1", "n3"}}, peers{"pilot-b": {of(3, 4, 5, "a.shop"), []string{"n2"}}}, "3: 5 of 7 a.shop z.shop"},
		"a node away":      {known{of(3, 1, 1), []string{"n1"}}, peers{"pilot-b": {of(3, 4, 4), []string{"n2"}}}, "3: 5 of 6" + away},
		"the other's node": {known{of(3, 1, 1), []string{"n1"}}, peers{"pilot-b": {of(3, 1, 1), []string{"n3"}}}, "3: 2 of 2"},
		"a Pilot away":     {known{of(3, 1, 1), []string{"n1"}}, peers{}, "3: 1 of 2" + away},
		"one is behind":    {known{of(3, 1, 1), []string{"n1", "n3"}}, peers{"pilot-b": {of(2, 1, 1), nil}}, "3: 2 of 2 unsettled"},
		"one is ahead":     {known{of(3, 1, 1), []string{"n1", "n3"}}, peers{"pilot-b": {of(4, 1, 1), nil}}, "4: 2 of 2 unsettled"},
		"one knows none":   {known{of(3, 1, 1), []string{"n1", "n3"}}, peers{"pilot-b": {of(0, 0, 0), nil}}, "3: 1 of 1 unsettled"},
		"a short answer":   {known{of(3, 1, 1), []string{"n1", "n3"}}, peers{"pilot-b": {nil, []string{"n2"}}}, "3: 1 of 1"},
	} {
		n := NewCensus(c.own, c.peers, snap, "bulwark-system", "pilot-a").Count(t.Context(), []registry.PolicyRef{policy}, 5)[0]
		got := fmt.Sprintf("%d: %d of %d", n.Generation, n.Taken, n.Proxies)
		for _, l := range n.Lagging {
			if got += " " + l.Proxy; l.Reason != "" {
				got += "(" + l.Reason + ")"
			}
		}
		if n.Unsettled != "" {
			got += " unsettled"
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// Of Pilots that are ready one leads, whatever each of them can reach.
func TestOneOfThePilotsLeads(t *testing.T) {
	snap := snapshotOf(t, world)
	for own, want := range map[string]bool{"pilot-a": true, "pilot-b": false, "pilot-0": false} {
		if got := NewCensus(known{}, peers{}, snap, "bulwark-system", own).Leads(); got != want {
			t.Errorf("%s leads: %v", own, got)
		}
	}
	if alone := snapshotOf(t, ""); !NewCensus(known{}, peers{}, alone, "bulwark-system", "x").Leads() {
		t.Error("one that knows of no Pilot does not lead")
	}
}

func TestOnlyPilotsAreAnswered(t *testing.T) {
	pilot := spiffe.ID{TrustDomain: "cluster.local", Namespace: "bulwark-system", ServiceAccount: "bulwark-pilot"}
	s := &Server{Store: known{[]push.Enforcement{{Generation: 1, Proxies: 2, Taken: 1, Lagging: []push.Laggard{{Proxy: "a.b", Reason: "r"}}}}, []string{"n1"}}, Allow: []spiffe.ID{pilot}}
	ask := &pilotv1.CountRequest{Policies: []*pilotv1.Policy{{Kind: "AuthorizationPolicy", Id: "shop/p"}}, Names: 3}
	for name, c := range map[string]struct {
		caller spiffe.ID
		err    error
		ask    *pilotv1.CountRequest
		want   codes.Code
	}{
		"a Pilot":          {pilot, nil, ask, codes.OK},
		"an agent":         {spiffe.ID{TrustDomain: "cluster.local", Namespace: "bulwark-system", ServiceAccount: "bulwark-agent"}, nil, ask, codes.PermissionDenied},
		"a workload":       {spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "bulwark-pilot"}, nil, ask, codes.PermissionDenied},
		"nobody":           {spiffe.ID{}, net.ErrClosed, ask, codes.Unauthenticated},
		"about no policy":  {pilot, nil, &pilotv1.CountRequest{Policies: []*pilotv1.Policy{{Kind: "Pod", Id: "shop/p"}}}, codes.InvalidArgument},
		"about an unknown": {pilot, nil, &pilotv1.CountRequest{Policies: []*pilotv1.Policy{{Kind: "X"}}}, codes.InvalidArgument},
	} {
		s.Caller = func(context.Context) (spiffe.ID, error) { return c.caller, c.err }
		got, err := s.Count(t.Context(), c.ask)
		if status.Code(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && (got.GetPolicies()[0].GetLagging()[0].GetProxy() != "a.b" || got.GetNodes()[0] != "n1") {
			t.Errorf("%s: %v", name, got)
		}
	}
}
