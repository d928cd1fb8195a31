// Package enforcement says how many of all proxies have taken a policy. A Pilot knows the proxies whose agents are connected to it, asks the
// other Pilots for theirs, and counts in what no agent vouches for: pods on nodes whose agent is connected to none.
package enforcement

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/push"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Store is what a Pilot knows by itself.
type Store interface {
	// Enforcement says how far connected proxies are with policies, in their order, and names so many of those that lag.
	Enforcement(policies []registry.PolicyRef, names int) []push.Enforcement
	// Nodes are those whose agents are connected.
	Nodes() []string
}

// Peers are the other Pilots.
type Peers interface {
	// Count asks the Pilot that is a pod. It does not wait for long.
	Count(ctx context.Context, pod *registry.Pod, policies []registry.PolicyRef, names int) (Answer, error)
}

// Answer is what a Pilot says of its own proxies.
type Answer struct {
	Policies []push.Enforcement // as they were asked for
	Nodes    []string           // whose agents are connected to it
}

// Count is how many proxies have taken a policy.
type Count struct {
	push.Enforcement
	// Unsettled says why this is no count, if it is none: not all Pilots have the same generation of the policy.
	Unsettled string
}

// Census counts.
type Census struct {
	store    Store
	peers    Peers
	snapshot func() *registry.Snapshot
	root     string // namespace of mesh-wide policies
	own      string // name of this Pilot's pod
}

// NewCensus returns the census of a Pilot, whose pod's name is own.
func NewCensus(store Store, peers Peers, snapshot func() *registry.Snapshot, root, own string) *Census {
	return &Census{store, peers, snapshot, root, own}
}

// Leads says whether this Pilot is the one that writes the outcome down: of those that are ready, as the API server has it, the first by name. So
// two do not write against each other, even while they cannot reach one another.
func (c *Census) Leads() bool {
	pilots := Pilots(c.snapshot())
	return len(pilots) == 0 || pilots[0].Name == c.own
}

// Pilots are the pods of Pilots that are ready, in the order of names.
func Pilots(snap *registry.Snapshot) []*registry.Pod {
	found := map[string]*registry.Pod{}
	for s := range snap.SlicesOf(mesh.Namespace + "/" + mesh.PilotAccount) {
		for _, e := range s.Endpoints {
			if p := snap.PodAt(e.Address); e.Ready && p != nil && p.Namespace == mesh.Namespace {
				found[p.Name] = p
			}
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b *registry.Pod) int { return cmp.Compare(a.Name, b.Name) })
}

// Count counts for policies, in their order, and names so many of the proxies that lag.
func (c *Census) Count(ctx context.Context, policies []registry.PolicyRef, names int) []Count {
	snap := c.snapshot()
	answers := []Answer{{c.store.Enforcement(policies, names), c.store.Nodes()}}
	for _, pod := range Pilots(snap) {
		if pod.Name == c.own {
			continue
		}
		// One that does not answer vouches for nobody: the pods of its nodes lag.
		if answer, err := c.peers.Count(ctx, pod, policies, names); err == nil && len(answer.Policies) == len(policies) {
			answers = append(answers, answer)
		}
	}
	alone := unvouched(snap, answers)
	out := make([]Count, len(policies))
	for i, ref := range policies {
		for _, a := range answers {
			out[i].add(a.Policies[i])
		}
		if v, ok := registry.VerdictOn(snap, ref.Kind, ref.ID); ok {
			for _, p := range alone {
				if compile.HoldsFor(snap, c.root, v, p.Namespace, p.Labels) {
					out[i].Proxies++
					out[i].Lagging = append(out[i].Lagging, push.Laggard{Proxy: p.Name + "." + p.Namespace,
						Reason: fmt.Sprintf("the agent of node %s is connected to no Pilot that answers", p.Node)})
				}
			}
		}
		slices.SortStableFunc(out[i].Lagging, func(a, b push.Laggard) int { return cmp.Compare(a.Proxy, b.Proxy) })
		out[i].Lagging = out[i].Lagging[:min(names, len(out[i].Lagging))]
	}
	return out
}

// add adds what another Pilot knows.
func (c *Count) add(e push.Enforcement) {
	if c.Generation != 0 && c.Generation != e.Generation || e.Generation == 0 {
		c.Unsettled = "not all Pilots have seen the same generation of it yet"
	}
	c.Generation = max(c.Generation, e.Generation)
	c.Proxies += e.Proxies
	c.Taken += e.Taken
	c.Lagging = append(c.Lagging, e.Lagging...)
}

// unvouched are the pods with a proxy for which no agent speaks.
func unvouched(snap *registry.Snapshot, answers []Answer) (out []*registry.Pod) {
	nodes := map[string]bool{}
	for _, a := range answers {
		for _, n := range a.Nodes {
			nodes[n] = true
		}
	}
	for p := range snap.Pods() {
		if p.Proxied && p.Node != "" && len(p.IPs) > 0 && !nodes[p.Node] {
			out = append(out, p)
		}
	}
	return out
}
