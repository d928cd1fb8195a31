package authz

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// allTexts are all of up to some length over an alphabet.
func allTexts(alphabet string, length int) []string {
	out, last := []string{""}, []string{""}
	for range length {
		var next []string
		for _, t := range last {
			for _, c := range alphabet {
				next = append(next, t+string(c))
			}
		}
		out, last = append(out, next...), next
	}
	return out
}

// Whether a text meets a demand is found out exactly: as when all short texts are tried.
func TestWhetherATextExistsIsKnown(t *testing.T) {
	all, values := allTexts("abA/~", 5), allTexts("ab/", 2)[1:]
	expressions := []string{`a[ab]*`, `(?s:.)*b`, `/[^/]+`, `(?:a|b)+/`, `(?i:A)b`, `[^a]*`, `/a(?s:.)*/b`, `[-a-z]+`}
	r := rand.New(rand.NewPCG(3, 5))
	pick := func() Match {
		v := values[r.IntN(len(values))]
		switch r.IntN(6) {
		case 0:
			return Match{Exact, v}
		case 1:
			return Match{Prefix, v}
		case 2:
			return Match{Suffix, v}
		case 3:
			return Match{Present, ""}
		}
		return Match{Regexp, expressions[r.IntN(len(expressions))]}
	}
	list := func(n int) (out []Match) {
		for range n {
			out = append(out, pick())
		}
		return out
	}
	found := map[bool]int{}
	for range 4000 / Share {
		l := newLanguages()
		d := demand{none: list(r.IntN(3))}
		for range r.IntN(4) {
			d.some = append(d.some, list(1+r.IntN(2)))
		}
		want := slices.ContainsFunc(all, func(text string) bool { return l.meets(d, text) })
		got := l.possible(d)
		if got != want {
			t.Fatalf("%+v: %v, want %v", d, got, want)
		}
		if found := l.search(d); found.possible != want || found.known && !l.meets(d, found.text) {
			t.Fatalf("%+v: following the expressions says %+v", d, found)
		}
		found[got]++
	}
	if found[true] < 400/Share || found[false] < 400/Share {
		t.Errorf("%v: the test does not test much", found)
	}
}

func TestWhetherAnAddressExistsIsKnown(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 5))
	var all []netip.Addr
	for i := range 512 { // the networks below are of the first 256, and no larger than all
		all = append(all, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
	}
	all = append(all, netip.Addr{}, netip.IPv4Unspecified(), netip.IPv6Unspecified())
	list := func(n int) (out []Match) {
		for range n {
			p := netip.PrefixFrom(all[r.IntN(256)], 23+r.IntN(10)).Masked()
			if r.IntN(8) == 0 {
				p = netip.MustParsePrefix([]string{"::/0", "0.0.0.0/0"}[r.IntN(2)])
			}
			out = append(out, Match{CIDR, p.String()})
		}
		return out
	}
	found := map[bool]int{}
	for range 4000 {
		d := demand{none: list(r.IntN(3))}
		for range r.IntN(3) {
			d.some = append(d.some, list(1+r.IntN(2)))
		}
		holds := Clauses{{Attribute: SourceIP, Not: d.none}}
		for _, some := range d.some {
			holds = append(holds, Clause{Attribute: SourceIP, Values: some})
		}
		p := holds.predicate()
		want := slices.ContainsFunc(all, func(a netip.Addr) bool { return p(&seen{Request: Request{SourceIP: a}}) })
		got := addressOf(d)
		if got != want {
			t.Fatalf("%+v: %v, want %v", d, got, want)
		}
		found[got]++
	}
	if found[true] < 400 || found[false] < 400 {
		t.Errorf("%v: the test does not test much", found)
	}
}

var contained = struct{ principals, namespaces, accounts, blocks, hosts, methods, paths, headers, ports, tokens, claims []string }{
	[]string{"cluster.local/ns/a/sa/x", "cluster.local/ns/a/sa/y", "cluster.local/ns/a/*", "*/sa/x", "*", "cluster.local/ns/b/sa/x", "cluster.local/ns/a/sa/x*"},
	[]string{"a", "b", "a*", "*"}, []string{"a/x", "x", "b/x"},
	[]string{"10.0.0.0/8", "10.0.0.1", "10.0.0.0/31", "0.0.0.0/0"},
	[]string{"web", "web:80", "*.example", "web*", "*"}, []string{"GET", "POST", "P*", "*"},
	[]string{"/a", "/a/*", "/a/{*}", "/a/{**}", "*/b", "/a/b", "*", "/@me"}, []string{"ok", "o*", "*", "bad"}, []string{"80", "81"},
	[]string{"a/b", "a/*", "*", "a/b*", "a/b/c", "*/c", "*b", "a*"}, []string{"1", "true", "ad*", "*", "admin", "*1"},
}

func randomRule(r *rand.Rand) *security.Rule {
	some := func(of []string) (out []string) {
		for range max(0, r.IntN(5)-2) {
			out = append(out, of[r.IntN(len(of))])
		}
		return out
	}
	v, out := contained, &security.Rule{}
	for range r.IntN(3) {
		s := &security.Source{Principals: some(v.principals), NotPrincipals: some(v.principals), Namespaces: some(v.namespaces), NotNamespaces: some(v.namespaces), IpBlocks: some(v.blocks),
			NotIpBlocks: some(v.blocks)}
		if r.IntN(4) == 0 {
			s = &security.Source{ServiceAccounts: some(v.accounts), NotServiceAccounts: some(v.accounts)}
		}
		if r.IntN(3) == 0 {
			s.RequestPrincipals, s.NotRequestPrincipals = some(v.tokens), some(v.tokens)
		}
		out.From = append(out.From, &security.Rule_From{Source: s})
	}
	for range r.IntN(3) {
		o := &security.Operation{Methods: some(v.methods), NotMethods: some(v.methods), Paths: some(v.paths), NotPaths: some(v.paths), Ports: some(v.ports), NotPorts: some(v.ports)}
		if r.IntN(3) == 0 {
			o.Hosts, o.NotHosts = some(v.hosts), some(v.hosts)
		}
		out.To = append(out.To, &security.Rule_To{Operation: o})
	}
	for key, values := range map[string][]string{"request.headers[x]": v.headers, "request.auth.claims[g]": v.claims, "request.auth.principal": v.tokens, "source.namespace": v.namespaces, "destination.port": v.ports, "source.ip": v.blocks} {
		if r.IntN(5) == 0 {
			out.When = append(out.When, &security.Condition{Key: key, Values: some(values), NotValues: some(values)})
		}
	}
	return out
}

func randomRequest(r *rand.Rand) Request {
	one := func(of ...string) string { return of[r.IntN(len(of))] }
	req := Request{HTTP: r.IntN(4) != 0, SourceIP: netip.MustParseAddr(one("10.0.0.1", "10.0.0.0", "10.9.9.9", "11.0.0.1")), DestinationPort: uint32(80 + r.IntN(3)),
		Host: one("web", "WEB:80", "x.example", "webx"), Method: one("GET", "POST", "PUT", "DELETE"), Path: one("/a", "/a/", "/a/b", "/a/b/c", "/b", "/@me", "/%40me", "/"), Headers: map[string][]string{}}
	if r.IntN(4) != 0 {
		req.Source = spiffe.ID{TrustDomain: "cluster.local", Namespace: one("a", "b", "ab"), ServiceAccount: one("x", "y", "xx")}
	}
	if r.IntN(4) != 0 {
		req.Claims = map[string]any{"iss": one("a", "a/b", "x"), "sub": one("b", "c", "b/c", "bb"), "g": []any{1.0, true, "admin", "ad", []any{"x", "admin"}, "", nil, "1"}[r.IntN(8)]}
	}
	for range r.IntN(3) {
		req.Headers["x"] = append(req.Headers["x"], one("ok", "bad", "o", "ok,bad", ""))
	}
	return req
}

// What is said to contain another rule matches whatever that matches, and what is said to be impossible matches nothing: random rules and requests, at
// ports that are HTTP and at others.
func TestContainedRulesNeverMatchAlone(t *testing.T) {
	r := rand.New(rand.NewPCG(uint64(rand.Int64()), 1))
	found := map[string]int{}
	for range 8000 / Share {
		actions := []security.AuthorizationPolicy_Action{security.AuthorizationPolicy_ALLOW, security.AuthorizationPolicy_DENY}
		make := func() Policy {
			p, _ := FromAuthorizationPolicy(Meta{Namespace: "own"}, &security.AuthorizationPolicy{Action: actions[r.IntN(2)], Rules: []*security.Rule{randomRule(r)}},
				Options{TrustDomain: "cluster.local", RootNamespace: "root"})
			return p
		}
		wide, narrow := make(), make()
		c := NewComparison()
		contains := c.Contains(c.Prepare(wide.Action, wide.Rules[0]), c.Prepare(narrow.Action, narrow.Rules[0]))
		parts := c.Impossible(narrow.Action, narrow.Rules[0])
		impossible := slices.ContainsFunc(parts, func(i Impossible) bool { return i.Whole })
		never := slices.ContainsFunc(parts, func(i Impossible) bool { return i.Never })
		if contains && !impossible && !narrow.Rules[0].Never {
			found["contained"]++
		}
		if impossible {
			found["impossible"]++
		}
		inNarrow, inWide := matches(narrow), matches(wide)
		for range 60 {
			req := randomRequest(r)
			if inNarrow(req) {
				found["matched"]++
				if impossible && req.HTTP || never {
					t.Fatalf("%+v is said to be impossible and matches %+v", narrow, req)
				}
				if contains && !inWide(req) {
					t.Fatalf("%+v is said to contain %+v, and only that matches %+v", wide, narrow, req)
				}
			}
		}
	}
	if found["contained"] < 130/Share || found["impossible"] < 130/Share || found["matched"] < 13000/Share {
		t.Errorf("%v: the test does not test much", found)
	}
}

// matches reports whether a policy's one rule matches a request.
func matches(p Policy) func(Request) bool {
	request, connection := p.Rules[0].predicate(), func(*seen) bool { return false }
	if tcp := p.TCP(); len(tcp.Rules) > 0 {
		connection = tcp.Rules[0].predicate()
	}
	return func(req Request) bool {
		s := seenOf(req)
		if !req.HTTP {
			return connection(s)
		}
		s.Path, _ = SeenPath(req)
		s.Host = strings.ToLower(req.Host)
		return request(s)
	}
}

// A request may have a header twice: that one line is among some values says nothing of the other.
func TestOneLineOfAHeaderSaysNothingOfTheOthers(t *testing.T) {
	rule := func(conditions ...*security.Condition) *Compared {
		p, _ := FromAuthorizationPolicy(Meta{Namespace: "own"}, &security.AuthorizationPolicy{Rules: []*security.Rule{{When: conditions}}}, Options{TrustDomain: "cluster.local", RootNamespace: "root"})
		return NewComparison().Prepare(Allow, p.Rules[0])
	}
	is := func(values ...string) *security.Condition {
		return &security.Condition{Key: "request.headers[x]", Values: values}
	}
	not := func(values ...string) *security.Condition {
		return &security.Condition{Key: "request.headers[x]", NotValues: values}
	}
	for name, c := range map[string]struct {
		wide, narrow *Compared
		want         bool
	}{
		"one value and not another":       {rule(not("bad")), rule(is("ok")), false},
		"more values":                     {rule(is("ok", "good")), rule(is("ok")), true},
		"a beginning":                     {rule(is("o*")), rule(is("ok")), true},
		"the same, and not another":       {rule(is("ok")), rule(is("ok"), not("bad")), true},
		"fewer that it must not be":       {rule(not("bad")), rule(not("b*")), true},
		"others that it must not be":      {rule(not("b*")), rule(not("bad")), false},
		"either of two lines":             {rule(is("a")), rule(is("a", "b")), false},
		"what no line can be in any case": {rule(is("a")), rule(is("a", "b"), not("b")), true},
	} {
		if got := NewComparison().Contains(c.wide, c.narrow); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	twice := rule(is("a"), is("b"))
	if found := NewComparison().Impossible(Allow, *twice.rule); len(found) > 0 {
		t.Errorf("two lines are taken for one: %+v", found)
	}
	if found := NewComparison().Impossible(Allow, *rule(is("ab"), not("a*")).rule); len(found) != 1 {
		t.Errorf("%+v", found)
	}
}
