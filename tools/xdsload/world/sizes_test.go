package world

import (
	"slices"
	"strings"
	"testing"
)

var usual = Sizes{Kind: Closed, Nodes: 10, PodsPerNode: 20, Services: 1000, Endpoints: 4, Namespaces: 10, Targets: 10}

func worldOf(s Sizes) *World { return &World{Sizes: s, uids: make([]string, s.Proxies())} }

// In a closed world, each policy names five workloads, and each of the half that call is named by ten policies.
func TestClosedWorldIsWhatItSays(t *testing.T) {
	for _, services := range []int{250, 1000, 4000} {
		s := usual
		s.Services = services
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		named := map[int]int{}
		for w := range s.guarded() {
			callers := slices.Sorted(slices.Values(s.callers(w)))
			if len(slices.Compact(callers)) != 5 {
				t.Fatalf("%d services: the policy of workload %d names %v", services, w, callers)
			}
			for _, c := range callers {
				named[c]++
			}
		}
		if s.guarded() != services || len(named) != services/2 {
			t.Errorf("of %d services %d have a policy, and %d workloads call", services, s.guarded(), len(named))
		}
		for w, n := range named {
			if n != 10 {
				t.Errorf("%d services: workload %d may call %d", services, w, n)
			}
		}
	}
}

// An endpoint's change concerns those who may call the service: five workloads' proxies, or all where no policy selects it.
func TestChangesConcernWhoMustHear(t *testing.T) {
	open := usual
	open.Kind = Open
	for _, c := range []struct {
		sizes               Sizes
		endpoints, policies int
	}{{usual, 20, 1000}, {open, 200, 50}} {
		if err := c.sizes.Validate(); err != nil {
			t.Fatal(err)
		}
		w := worldOf(c.sizes)
		concerned := func(ch Change) (n int) {
			for _, m := range w.Members() {
				if ch.Affects(m) {
					n++
				}
			}
			return n
		}
		for n := range 100 {
			if got := concerned(w.EndpointChange(n)); got != c.endpoints {
				t.Errorf("%s: endpoint change %d concerns %d proxies, want %d", c.sizes.Kind, n, got, c.endpoints)
			}
			if got := concerned(w.WorkloadPolicyChange(n)); got != 4 {
				t.Errorf("%s: policy change %d of a workload concerns %d proxies", c.sizes.Kind, n, got)
			}
			if got := concerned(w.NamespacePolicyChange(n)); got != 20 {
				t.Errorf("%s: policy change %d of a namespace concerns %d proxies", c.sizes.Kind, n, got)
			}
		}
		if w.guarded() != c.policies {
			t.Errorf("%s: %d policies, want %d", c.sizes.Kind, w.guarded(), c.policies)
		}
	}
}

// The pods of a workload are on different nodes, each node has as many with a proxy, and a change's marker is in no other's.
func TestPodsAreSpread(t *testing.T) {
	w := worldOf(usual)
	nodes, onNode, ips := map[string]int{}, map[string]bool{}, map[string]bool{}
	for i := range w.pods() {
		m := w.pod(i)
		if ips[m.IP] {
			t.Fatalf("two pods have the address %s", m.IP)
		}
		ips[m.IP] = true
		if key := m.Workload + m.Node; onNode[key] {
			t.Fatalf("two pods of %s are on %s", m.Workload, m.Node)
		} else {
			onNode[key] = true
		}
	}
	for _, m := range w.Members() {
		nodes[m.Node]++
	}
	for name, n := range nodes {
		if n != usual.PodsPerNode {
			t.Errorf("%s has %d pods with a proxy", name, n)
		}
	}
	markers := []string{changedAddress(0)}
	for n := range 300 {
		for _, c := range []Change{w.EndpointChange(n), w.WorkloadPolicyChange(n), w.NamespacePolicyChange(n)} {
			markers = append(markers, c.Marker)
		}
	}
	for i, m := range markers {
		if slices.ContainsFunc(markers[i+1:], func(o string) bool { return strings.Contains(o, m) || strings.Contains(m, o) }) {
			t.Fatalf("marker %s is in another", m)
		}
	}
}

func TestSizesThatDoNotFitAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Sizes){
		"no world":                       func(s *Sizes) { s.Kind = "ajar" },
		"no nodes":                       func(s *Sizes) { s.Nodes = 0 },
		"proxies of half a workload":     func(s *Sizes) { s.Nodes = 1; s.PodsPerNode = 30 },
		"a namespace without a proxy":    func(s *Sizes) { s.Nodes = 1 },
		"fewer callers than workloads":   func(s *Sizes) { s.Services = 90 },
		"targets that nobody may call":   func(s *Sizes) { s.Targets = 101 },
		"targets that there are not":     func(s *Sizes) { s.Kind = Open; s.Targets = 951 },
		"more pods than addresses":       func(s *Sizes) { s.Services = 20000 },
		"more namespaces than two-digit": func(s *Sizes) { s.PodsPerNode = 60; s.Namespaces = 101 },
	} {
		s := usual
		if change(&s); s.Validate() == nil {
			t.Errorf("%s: %+v is not refused", name, s)
		}
	}
	if err := usual.Validate(); err != nil {
		t.Error(err)
	}
}
