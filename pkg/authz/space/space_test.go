package space

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	security "istio.io/api/security/v1beta1"

	"net/netip"
	"slices"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/authz/authztest"
)

// share is which part of its rounds a random test makes: one in so many.
var share = 1

// values are what a request has on an axis, as rules see it.
func values(x *Axis, req authz.Request) []string {
	switch x.Attribute {
	case authz.Principal:
		if req.Source.IsZero() {
			return nil
		}
		return []string{req.Source.String()}
	case authz.Header:
		return req.Headers[x.Key]
	case authz.Method:
		return []string{req.Method}
	case authz.Path:
		path, _, _ := strings.Cut(req.Path, "?")
		return []string{path}
	case authz.Host:
		return []string{strings.ToLower(req.Host)}
	case authz.SNI:
		return []string{strings.ToLower(req.SNI)}
	case authz.RequestPrincipal:
		issuer, _ := req.Claims["iss"].(string)
		subject, ok := req.Claims["sub"].(string)
		if !ok {
			return nil
		}
		return []string{issuer + authz.BetweenIssuerAndSubject + subject}
	case authz.Claim:
		switch v := req.Claims["groups"].(type) {
		case nil, map[string]any:
			return nil
		case []any:
			var out []string
			for _, one := range v {
				out = append(out, fmt.Sprint(one))
			}
			return out
		default:
			return []string{fmt.Sprint(v)}
		}
	case authz.SourceIP:
		return []string{req.SourceIP.String()}
	}
	panic(x.Attribute)
}

var expressions = map[string]*regexp.Regexp{}

// compiled is an expression for the whole of a text, which is made once.
func compiled(expression string) *regexp.Regexp {
	if expressions[expression] == nil {
		expressions[expression] = regexp.MustCompile("^(?:" + expression + ")$")
	}
	return expressions[expression]
}

// kindOf finds the kind of a request on an axis, by matching one value after the other.
func kindOf(t *testing.T, x *Axis, req authz.Request) int {
	t.Helper()
	of := values(x, req)
	special := ""
	for _, m := range authz.Ambiguities {
		if m.Attribute == x.Attribute && m.Finds(of[0]) {
			special = Ambiguous
			if m.Exact != "" {
				special = m.Exact
			}
		}
	}
	in := newSet(len(x.terms))
	for i, term := range x.terms {
		for _, m := range term.matches {
			for _, v := range of {
				if p, err := netip.ParsePrefix(m.Value); m.Kind == authz.CIDR && err == nil {
					if p.Contains(netip.MustParseAddr(v)) {
						in.add(i)
					}
				} else if compiled(x.expression(m)).MatchString(v) {
					in.add(i)
				}
			}
		}
	}
	for i, k := range x.kinds {
		if special != "" && k.Special == special || special == "" && k.Special != Ambiguous && k.Special != Tunnel && k.in.key() == in.key() &&
			(x.Attribute != authz.Principal || (k.Special == NoIdentity) == (len(of) == 0)) {
			return i
		}
	}
	t.Fatalf("%v is of no kind of %s", of, x.Name())
	return 0
}

func (r Region) has(t *testing.T, req authz.Request) bool {
	t.Helper()
	for _, p := range r.Parts {
		if !p.kinds.has(kindOf(t, p.Axis, req)) {
			return false
		}
	}
	return true
}

// decided says how a side decides, whose policies are compiled as a program.
func decided(of Side, program *authz.Program, req authz.Request) bool {
	if of.Mode == authz.Strict && req.Source.IsZero() {
		return false
	}
	if of.Mode == authz.Disable {
		req.Source.Namespace, req.Source.ServiceAccount, req.Source.TrustDomain = "", "", ""
	}
	d := program.Decide(req)
	if of.Asked == "" {
		return d.Allowed
	}
	for _, m := range authz.Ambiguities {
		if text := map[authz.Attribute]string{authz.Method: req.Method, authz.Path: req.Path}[m.Attribute]; req.HTTP && of.concerns(m) && m.Finds(text) {
			return true
		}
	}
	return !slices.ContainsFunc(of.Policies, func(p authz.Policy) bool {
		return p.Provider == of.Asked && slices.ContainsFunc(p.Rules, func(r authz.Rule) bool { return slices.Contains(d.Asked, p.RuleID(r)) })
	})
}

// Each region's example is decided as the region says, each random request is in the one region that there is for it, and no change is missing.
func TestDivisionAgreesWithDecisions(t *testing.T) {
	g, changed := authztest.New(t), 0
	modes := []authz.TLSMode{authz.Strict, authz.Permissive, authz.Permissive, authz.Disable}
	for range 300 / share {
		specs := g.Specs()
		req := g.Request()
		asked := []string{"", "", "one"}[g.IntN(3)]
		sides := []Side{
			{authztest.Compiled(t, specs), req.DestinationPort, req.HTTP, modes[g.IntN(4)], asked},
			{authztest.Compiled(t, append(g.Specs()[:1], specs[1:]...)), req.DestinationPort, req.HTTP, modes[g.IntN(4)], asked},
		}
		programs := []*authz.Program{authz.Compile(sides[0].Policies), authz.Compile(sides[1].Policies)}
		for _, changesAlone := range []bool{false, true} {
			space, err := Divide(sides, []string{"cluster.local"}, changesAlone)
			if err != nil {
				t.Fatal(err)
			}
			regions, err := space.Regions()
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range regions {
				changed += len(r.Parts)
				example, ok := space.Example(r, sides[0])
				if !example.SourceIP.IsValid() {
					example.SourceIP = netip.MustParseAddr("198.18.0.1")
				}
				if !ok {
					t.Fatalf("no example of %v", r)
				}
				for i, of := range sides {
					if decided(of, programs[i], example) != r.Allowed[i] {
						t.Fatalf("side %d decides %v about %+v, the region says %v\n%v\n%+v", i, !r.Allowed[i], example, r.Allowed, described(r), of)
					}
				}
			}
			for range 30 {
				other := g.Request()
				if other.HTTP != req.HTTP {
					continue
				}
				other.DestinationPort = req.DestinationPort
				in := 0
				for _, r := range regions {
					if r.has(t, other) {
						in++
						for i, of := range sides {
							if decided(of, programs[i], other) != r.Allowed[i] {
								t.Fatalf("side %d decides %v about %+v, the region says %v\n%v\n%+v", i, !r.Allowed[i], other, r.Allowed, described(r), of)
							}
						}
					}
				}
				if differs := decided(sides[0], programs[0], other) != decided(sides[1], programs[1], other); in > 1 || in == 0 && (!changesAlone || differs) {
					t.Fatalf("%+v is in %d regions, and decided differently: %v", other, in, differs)
				}
			}
		}
	}
	if changed < 1000/share {
		t.Errorf("only %d parts of regions: the test does not test much", changed)
	}
}

func described(r Region) string {
	var out []string
	for _, p := range r.Parts {
		out = append(out, p.Axis.Name()+": "+strings.Join(p.Describe(), " | "))
	}
	return strings.Join(out, "; ") + fmt.Sprint(" → ", r.Allowed)
}

func sideOf(t testing.TB, specs ...string) Side {
	t.Helper()
	out := Side{Port: 8080, HTTP: true, Mode: authz.Strict}
	for i, text := range specs {
		var spec security.AuthorizationPolicy
		if err := protojson.Unmarshal([]byte(text), &spec); err != nil {
			t.Fatal(err)
		}
		p, problems := authz.FromAuthorizationPolicy(authz.Meta{Namespace: "finance", Name: fmt.Sprint("p", i)}, &spec, authztest.Options)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		out.Policies = append(out.Policies, p)
	}
	return out
}

func TestRegionsAreInTheWordsOfThePolicies(t *testing.T) {
	const readers = `{"rules":[{"from":[{"source":{"principals":["cluster.local/ns/finance/sa/auditor"]}}],"to":[{"operation":{"methods":["GET"],"paths":["/accounts/*"]}}]}]}`
	for _, c := range []struct {
		name          string
		before, after Side
		want          string
	}{
		{"a method more", sideOf(t, readers), sideOf(t, strings.Replace(readers, `["GET"]`, `["GET","HEAD"]`, 1)),
			"client: cluster.local/ns/finance/sa/auditor; method: HEAD; path: /accounts/* → [false true]"},
		{"a path less", sideOf(t, readers), sideOf(t, readers, `{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/accounts/secret"]}}]}]}`),
			"client: cluster.local/ns/finance/sa/auditor; method: GET; path: /accounts/secret → [true false]"},
		{"with a header only", sideOf(t, readers), sideOf(t, strings.Replace(readers, `}]}]}`, `}],"when":[{"key":"request.headers[x-role]","values":["auditor"]}]}]}`, 1)),
			"client: cluster.local/ns/finance/sa/auditor; method: GET; path: /accounts/*; header x-role: any but auditor → [true false]"},
		{"the same in other words", sideOf(t, readers), sideOf(t, strings.Replace(readers, `["/accounts/*"]`, `["/accounts/*","/accounts/1"]`, 1)), ""},
		{"in two policies", sideOf(t, readers), sideOf(t, readers, readers), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			space, err := Divide([]Side{c.before, c.after}, []string{"cluster.local"}, true)
			if err != nil {
				t.Fatal(err)
			}
			regions, err := space.Regions()
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range regions {
				got = append(got, described(r))
			}
			if strings.Join(got, "\n") != c.want {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), c.want)
			}
		})
	}
}

// many are as many policies, one of which is other than before.
func many(tb testing.TB, n int, other string) Side {
	var specs []string
	for i := range n {
		account := fmt.Sprint("account-", i)
		if i == n/2 {
			account += other
		}
		specs = append(specs, fmt.Sprintf(`{"rules":[{"from":[{"source":{"principals":["cluster.local/ns/finance/sa/%s"]}}],"to":[{"operation":{"methods":["GET","POST"],"paths":["/accounts/%d/*","/v1/{*}/%d","*/report-%d"]}}]}]}`, account, i, i, i%10))
	}
	return sideOf(tb, specs...)
}

func TestManyPoliciesAreComparedInTime(t *testing.T) {
	before, after := many(t, 500, ""), many(t, 500, "-new")
	start := time.Now()
	space, err := Divide([]Side{before, after}, []string{"cluster.local"}, true)
	if err != nil {
		t.Fatal(err)
	}
	regions, err := space.Regions()
	if took := time.Since(start); err != nil || len(regions) != 2 || took > 5*time.Second {
		t.Errorf("%d regions, %v, after %s", len(regions), err, took)
	}
}

// What is too much is said, and does not take long.
func TestWhatIsTooEntangledIsSaid(t *testing.T) {
	var from, to, paths []string
	for i := range 400 {
		from = append(from, fmt.Sprintf(`{"source":{"principals":["cluster.local/ns/n/sa/a%d"],"ipBlocks":["10.0.%d.0/24"]}}`, i, i%256))
		to = append(to, fmt.Sprintf(`{"operation":{"methods":["M%d"],"paths":["/p%d"]}}`, i, i))
		paths = append(paths, fmt.Sprintf(`"/{*}/%c%c/{*}/%c/{**}"`, 'a'+i%26, 'a'+i/26, 'a'+i%7))
	}
	for name, spec := range map[string]string{
		"alternatives": `{"rules":[{"from":[` + strings.Join(from, ",") + `],"to":[` + strings.Join(to, ",") + `]}]}`,
		"paths":        `{"rules":[{"to":[{"operation":{"paths":[` + strings.Join(paths, ",") + `],"notPaths":["*x","*y","*/a*b"]}}]}]}`,
	} {
		start := time.Now()
		_, err := Divide([]Side{sideOf(t, spec)}, []string{"cluster.local"}, false)
		if took := time.Since(start); err != nil && !strings.Contains(err.Error(), ErrTooMany.Error()) || took > 20*time.Second {
			t.Errorf("%s: %v after %s", name, err, took)
		} else {
			t.Logf("%s: %v after %s", name, err, took)
		}
	}
}

func BenchmarkDivide(b *testing.B) {
	before, after := many(b, 500, ""), many(b, 500, "-new")
	for b.Loop() {
		space, err := Divide([]Side{before, after}, []string{"cluster.local"}, true)
		if err != nil {
			b.Fatal(err)
		}
		if regions, err := space.Regions(); err != nil || len(regions) != 2 {
			b.Fatal(len(regions), err)
		}
	}
}
