package authz_test

import (
	"testing"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/authz/authztest"
)

// What is decided alike whether the unknown speaks for a request or against it is decided so with whatever it is, and what depends on it is not called certain.
func TestCertainIsWhatNothingUnknownChanges(t *testing.T) {
	g, certain, open := authztest.New(t), 0, 0
	unknown := func(c authz.Clause) bool { return c.Attribute == authz.Header || c.Attribute == authz.Claim }
	for range 300 {
		policies := authztest.Compiled(t, g.Specs())
		cautious, trusting, real := authz.Compile(authz.Assume(policies, unknown, true)), authz.Compile(authz.Assume(policies, unknown, false)), authz.Compile(policies)
		for range 30 {
			req := g.Request()
			worst, best, is := cautious.Decide(req).Allowed, trusting.Decide(req).Allowed, real.Decide(req).Allowed
			if worst && !is || is && !best {
				t.Fatalf("%+v: at worst allowed %v, at best %v, and it is %v\n%+v", req, worst, best, is, policies)
			}
			if worst == best {
				certain++
			} else if open++; len(authz.Uncertain(policies, unknown)) == 0 {
				t.Fatalf("it depends on nothing, and is uncertain: %+v", req)
			}
		}
	}
	if certain < 1000 || open < 50 {
		t.Errorf("%d decisions are certain, %d are not: the test does not test much", certain, open)
	}
}
