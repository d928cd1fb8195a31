package authz_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/authz/authztest"
)

// seen is the path as rules see it.
func seen(req authz.Request) string {
	path, _, _ := strings.Cut(req.Path, "?")
	return path
}

// decided is what the outcomes of rules amount to: one that denies, else one that allows, and of several the one whose name is first.
func decided(e authz.Explanation) string {
	for _, action := range []authz.Action{authz.Deny, authz.Allow} {
		var matching []string
		for _, p := range e.Policies {
			for _, r := range p.Rules {
				if p.Action == action && !p.DryRun && r.Matches && r.Skipped == "" {
					matching = append(matching, r.ID)
				}
			}
		}
		if len(matching) > 0 {
			return slices.Min(matching)
		}
	}
	return ""
}

func TestExplanationAgreesWithTheDecision(t *testing.T) {
	g, by := authztest.New(t), map[string]int{}
	for range 300 / authz.Share {
		policies, req := authztest.Compiled(t, g.Specs()), authz.Request{}
		program := authz.Compile(policies)
		for range 10 {
			req = g.Request()
			e, d := authz.Explain(policies, req), program.Decide(req)
			if e.Allowed != d.Allowed || e.Policy != d.Policy || e.Reason != d.Reason {
				t.Fatalf("explained %+v, decided %+v", e.Decision, d)
			}
			_, _, rule := authz.RuleOf(policies, d.Policy)
			if got := decided(e); got != d.Policy && (rule || d.Policy == "") {
				t.Fatalf("the rules that match say %q, the decision %q\n%+v\n%+v", got, d.Policy, req, e)
			}
			by[fmt.Sprint(d.Allowed, rule)]++
			for _, p := range e.Policies {
				for _, r := range p.Rules {
					if r.Matches != (len(r.Missed) == 0 && r.Skipped == "") {
						t.Fatalf("a rule matches or misses a clause: %+v", r)
					}
				}
			}
		}
	}
	for _, kind := range []string{"true true", "false true", "false false"} {
		if by[kind] < 100/authz.Share {
			t.Errorf("only %d decisions are %s: %v", by[kind], kind, by)
		}
	}
}

func TestChangeAdmitsExactlyTheRequest(t *testing.T) {
	g, admitted := authztest.New(t), 0
	for range 400 {
		specs, req := g.Specs(), g.Request()
		policies := authztest.Compiled(t, specs)
		before := authz.Compile(policies)
		if before.Decide(req).Allowed {
			continue
		}
		name := authz.Meta{Namespace: "finance", Name: "new"}
		changed, err := authz.Admit(policies, specs, req, name, map[string]string{"app": "payroll"}, authztest.Options)
		if err != nil {
			if path := seen(req); !authz.IsAmbiguous(path) && req.Method != "get" {
				t.Fatalf("no change for %+v: %v", req, err)
			}
			continue
		}
		after := slices.Clone(specs)
		for _, c := range changed {
			if i := slices.IndexFunc(after, func(s authz.Spec) bool { return s.Name == c.Name }); i >= 0 {
				after[i] = c
			} else {
				after = append(after, c)
			}
		}
		then := authz.Compile(authztest.Compiled(t, after))
		if d := then.Decide(req); !d.Allowed {
			t.Fatalf("%+v is not admitted: %+v\n%v\nchanged %v", req, d, specs, changed)
		}
		admitted++
		for range 50 {
			other := g.Request()
			same := seen(req)
			if path := seen(other); other.Source == req.Source && (req.Claims == nil || other.Claims["iss"] == req.Claims["iss"] && other.Claims["sub"] == req.Claims["sub"]) && other.DestinationPort == req.DestinationPort && other.HTTP == req.HTTP && other.Method == req.Method && path == same &&
				(req.HTTP || other.DestinationPort == req.DestinationPort) {
				continue
			}
			if other.HTTP != req.HTTP && other.DestinationPort == req.DestinationPort {
				continue // a port speaks one of them
			}
			was, is := before.Decide(other), then.Decide(other)
			if was.Allowed != is.Allowed && is.Policy != authz.AmbiguousPathRule && is.Policy != authz.AmbiguousMethodRule {
				t.Fatalf("%+v was allowed %v by %q, and is %v by %q, though the change is for %+v\n%v\nchanged %v", other, was.Allowed, was.Policy, is.Allowed, is.Policy, req, specs, changed)
			}
		}
	}
	if admitted < 80 {
		t.Errorf("only %d requests were admitted by a change", admitted)
	}
}
