package analyze

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/pilot/offline"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

var vocabulary = map[string][]string{
	"principals": {"cluster.local/ns/finance/sa/a", "cluster.local/ns/shop/*", "*", "*/sa/a", "cluster.local/ns/shop/sa/b"},
	"namespaces": {"finance", "shop", "fin*", "*"}, "serviceAccounts": {"a", "shop/b"}, "ipBlocks": {"10.0.0.0/8", "10.0.0.1"},
	"methods": {"GET", "P*", "*", "POST"}, "paths": {"/a", "/a/*", "/a/{*}", "*/b", "*"}, "hosts": {"web", "*.example", "*"}, "ports": {"8080", "9000"},
}

// random is a policy of a few rules.
func random(r *rand.Rand, name string) string {
	one := func(of ...string) string { return of[r.IntN(len(of))] }
	fields := func(names ...string) string {
		var out []string
		for _, n := range names {
			for _, field := range []string{n, "not" + strings.ToUpper(n[:1]) + n[1:]} {
				if r.IntN(4) == 0 {
					out = append(out, fmt.Sprintf("%s: [%q, %q]", field, one(vocabulary[n]...), one(vocabulary[n]...)))
				}
			}
		}
		if out == nil {
			out = []string{fmt.Sprintf("%s: [%q]", names[0], one(vocabulary[names[0]]...))}
		}
		return "{" + strings.Join(out, ", ") + "}"
	}
	var rules []string
	for range 1 + r.IntN(3) {
		var parts []string
		if r.IntN(3) != 0 {
			source := fields("principals", "namespaces", "ipBlocks")
			if r.IntN(4) == 0 {
				source = fields("serviceAccounts", "ipBlocks")
			}
			parts = append(parts, "from: [{source: "+source+"}]")
		}
		if r.IntN(3) != 0 {
			parts = append(parts, "to: [{operation: "+fields("methods", "paths", "hosts", "ports")+"}, {operation: "+fields("paths", "ports")+"}]")
		}
		if r.IntN(4) == 0 {
			parts = append(parts, fmt.Sprintf(`when: [{key: "request.headers[x]", values: [%q], notValues: [%q]}]`, one("ok", "o*", "*"), one("bad", "ok", "o*")))
		}
		rules = append(rules, "{"+strings.Join(parts, ", ")+"}")
	}
	return fmt.Sprintf("\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: %s, namespace: finance}\nspec: {action: %s, rules: [%s]}",
		name, one("ALLOW", "ALLOW", "DENY", "AUDIT"), strings.Join(rules, ", "))
}

var rulePlace = regexp.MustCompile(`^spec\.rules\[(\d+)\]`)

// What is said of rules is so: one that never matches, or is denied before, is never the one that decides; without one that is contained in another, all
// decisions are what they are.
func TestWhatIsSaidOfRulesHolds(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	one := func(of ...string) string { return of[r.IntN(len(of))] }
	said := map[string]int{}
	for range 600 {
		var files []*unstructured.Unstructured
		for i := range 1 + r.IntN(4) {
			o := &unstructured.Unstructured{}
			if err := yaml.Unmarshal([]byte(random(r, fmt.Sprintf("p%d", i))), &o.Object); err != nil {
				t.Fatal(err)
			}
			files = append(files, o)
		}
		snap, _, err := offline.Snapshot(files, options, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		var policies []authz.Policy
		for p := range snap.Policies() {
			policies = append(policies, p.Policy)
		}
		whole := authz.Compile(policies)
		for _, f := range find(t, Input{Files: files}) {
			place := rulePlace.FindStringSubmatch(f.Field)
			if place == nil || !slices.Contains([]string{NeverMatches, ShadowedByDeny, Redundant}, f.Code) || f.Code == NeverMatches && !strings.HasSuffix(f.Message, "never matches") {
				continue
			}
			said[f.Code]++
			index, _ := strconv.Atoi(place[1])
			id, without := "", slices.Clone(policies)
			for i, p := range without {
				if p.Name == f.Object.Name {
					id = p.RuleID(authz.Rule{Index: index})
					without[i].Rules = slices.DeleteFunc(slices.Clone(p.Rules), func(r authz.Rule) bool { return r.Index == index })
				}
			}
			less := authz.Compile(without)
			for range 100 {
				req := authz.Request{HTTP: r.IntN(5) != 0, SourceIP: netip.MustParseAddr(one("10.0.0.1", "10.1.0.1", "11.0.0.1")), DestinationPort: []uint32{8080, 9000, 1}[r.IntN(3)],
					Host: one("web", "x.example", "y"), Method: one("GET", "POST", "PUT", "DELETE"), Path: one("/a", "/a/b", "/a/b/c", "/b", "/"), Headers: map[string][]string{}}
				if r.IntN(4) != 0 {
					req.Source = spiffe.ID{TrustDomain: "cluster.local", Namespace: one("finance", "shop", "fin"), ServiceAccount: one("a", "b", "c")}
				}
				for range r.IntN(3) {
					req.Headers["x"] = append(req.Headers["x"], one("ok", "bad", "o", ""))
				}
				with, gone := whole.Decide(req), less.Decide(req)
				switch {
				case f.Code != Redundant && (with.Policy == id || slices.Contains(with.Audited, id)):
					t.Fatalf("%s, and %s decides about %+v\n%s", show([]Finding{f}), id, req, text(files))
				case with.Allowed != gone.Allowed || (len(with.Audited) > 0) != (len(gone.Audited) > 0):
					t.Fatalf("%s, and without it %+v is decided otherwise: %+v, %+v\n%s", show([]Finding{f}), req, with, gone, text(files))
				}
			}
		}
	}
	if said[NeverMatches] < 30 || said[ShadowedByDeny] < 10 || said[Redundant] < 30 {
		t.Errorf("%v: the test does not test much", said)
	}
}

func text(files []*unstructured.Unstructured) string {
	var sb strings.Builder
	for _, o := range files {
		out, _ := yaml.Marshal(o.Object)
		sb.WriteString("---\n" + string(out))
	}
	return sb.String()
}
