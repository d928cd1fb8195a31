package authz

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// What is left of policies for a peer decides about its requests as the whole does, by the same rule.
func TestPartForAPeerDecidesAsTheWhole(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	g := rand.New(rand.NewPCG(seed, 1))
	peers := []spiffe.ID{}
	for i := range 8 {
		peers = append(peers, spiffe.ID{TrustDomain: "cluster.local", Namespace: "n", ServiceAccount: fmt.Sprint("a", i)})
	}
	clause := func() Clause {
		switch g.IntN(4) {
		case 0:
			return Clause{Attribute: Method, Values: []Match{{Exact, []string{"GET", "PUT"}[g.IntN(2)]}}}
		case 1:
			return Clause{Attribute: Principal, Values: []Match{{Regexp, "spiffe://cluster.local/ns/n/sa/a[0-3]"}}}
		case 2:
			return Clause{Attribute: Namespace, Not: []Match{{Exact, peers[g.IntN(8)].String()}}}
		}
		c := Clause{Attribute: []Attribute{Principal, ServiceAccount}[g.IntN(2)]}
		for range 1 + g.IntN(3) {
			c.Values = append(c.Values, Match{Exact, peers[g.IntN(8)].String()})
		}
		return c
	}
	clauses := func(least, most int) (out Clauses) {
		for range least + g.IntN(most-least+1) {
			out = append(out, clause())
		}
		return out
	}
	apart, admitted := 0, 0
	for range 8000 / Share {
		var policies []Policy
		for i := range 1 + g.IntN(4) {
			p := Policy{Meta: Meta{Namespace: "n", Name: fmt.Sprint(i), DryRun: g.IntN(5) == 0}, Action: []Action{Allow, Deny}[g.IntN(2)], Ignored: g.IntN(9) == 0}
			for j := range g.IntN(30) {
				r := Rule{Index: j, Never: g.IntN(9) == 0, When: clauses(0, g.IntN(2))}
				for range g.IntN(3) {
					r.From = append(r.From, clauses(1, 2))
				}
				p.Rules = append(p.Rules, r)
			}
			policies = append(policies, p)
		}
		for _, action := range []Action{Allow, Deny} {
			parts := ByPeer(policies, action)
			apart += len(parts)
			whole := slices.DeleteFunc(slices.Clone(policies), func(p Policy) bool { return p.Action != action })
			for _, tried := range []bool{false, true} { // what is enforced, and what is tried out
				all := Compile(only(whole, tried))
				for _, peer := range peers {
					part, ok := parts[peer.String()]
					if !ok {
						continue
					}
					its := Compile(only(part, tried))
					for _, method := range []string{"GET", "PUT", "POST"} {
						req := Request{Source: peer, HTTP: true, Method: method, Path: "/", Host: "h"}
						got, want := its.Decide(req), all.Decide(req)
						if got.Allowed != want.Allowed || got.Policy != want.Policy || got.Reason != want.Reason {
							t.Fatalf("%s of %s, dry run %v: the part says %+v, the whole %+v\npart %+v\nwhole %+v", method, peer, tried, got, want, part, whole)
						}
						if want.Policy != "" {
							admitted++
						}
					}
				}
			}
		}
	}
	if apart < 500 || admitted < 500 {
		t.Errorf("%d parts were compared, %d times a rule decided: too few", apart, admitted)
	}
}

// only has the policies that are enforced, or those that are on trial as if they were.
func only(policies []Policy, tried bool) (out []Policy) {
	for _, p := range policies {
		if p.DryRun == tried {
			p.DryRun = false
			out = append(out, p)
		}
	}
	return out
}

// Parts together are not many times as large as the policies, whatever these are.
func TestPartsDoNotGrowOutOfBounds(t *testing.T) {
	exact := func(n int) (out []Match) {
		for i := range n {
			out = append(out, Match{Exact, fmt.Sprint("spiffe://cluster.local/ns/n/sa/a", i)})
		}
		return out
	}
	paths := Clause{Attribute: Path, Values: exact(500)}
	for name, c := range map[string]struct {
		rules []Rule
		parts int
	}{
		"little is demanded":            {[]Rule{{From: []Clauses{{{Attribute: Principal, Values: exact(10)}}}}}, 0},
		"many peers, one demand":        {[]Rule{{From: []Clauses{{{Attribute: Principal, Values: exact(1000)}}}}}, 1000},
		"many peers, many paths":        {[]Rule{{From: []Clauses{{{Attribute: Principal, Values: exact(1000)}}}, To: []Clauses{{paths}}}}, 0},
		"and as much for everyone":      {[]Rule{{From: []Clauses{{{Attribute: Principal, Values: exact(100)}}}}, {To: []Clauses{{paths}}}}, 0},
		"and a little for everyone":     {[]Rule{{From: []Clauses{{{Attribute: Principal, Values: exact(100)}}}}, {}}, 100},
		"nobody is named":               {slices.Repeat([]Rule{{To: []Clauses{{paths}}}}, 40), 0},
		"someone is named or excluded":  {slices.Repeat([]Rule{{From: []Clauses{{{Attribute: Principal, Values: exact(1)}}, {{Attribute: Principal, Not: exact(1)}}}}}, 40), 0},
		"peers are named in conditions": {slices.Repeat([]Rule{{When: Clauses{{Attribute: Principal, Values: exact(3)}}}}, 40), 3},
	} {
		policies := []Policy{{Action: Allow, Rules: c.rules}}
		parts := ByPeer(policies, Allow)
		whole, all := 0, 0
		for _, r := range c.rules {
			whole += r.size()
		}
		for _, part := range parts {
			for _, p := range part {
				for _, r := range p.Rules {
					all += r.size()
				}
			}
		}
		if len(parts) != c.parts || all > maxGrowth*whole {
			t.Errorf("%s: %d parts, %d times the size, want %d parts", name, len(parts), all/whole, c.parts)
		}
	}
}
