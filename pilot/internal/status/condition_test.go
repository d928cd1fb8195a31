package status

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func verdict(generation int64, problems ...authz.Problem) registry.Verdict {
	return registry.Verdict{Kind: "AuthorizationPolicy", Namespace: "a", Name: "p", Generation: generation, Problems: problems}
}

func cond(status, reason, message string, generation int64, since string) map[string]any {
	return map[string]any{"type": Type, "status": status, "reason": reason, "message": message, "observedGeneration": generation, "lastTransitionTime": since}
}

func TestWanted(t *testing.T) {
	const earlier, now = "2026-01-01T11:00:00Z", "2026-01-01T12:00:00Z"
	custom := authz.Problem{Field: "spec.action", Reason: "CUSTOM is not supported"}
	const closed = "What cannot be enforced fails closed: spec.action: CUSTOM is not supported"
	const enforced = "Enforced as it is written."
	theirs := map[string]any{"type": "Reconciled", "status": "True"}
	idle := verdict(1, custom)
	idle.Idle = true
	partly := verdict(1, custom)
	partly.Partly = true
	for name, c := range map[string]struct {
		verdict registry.Verdict
		have    []any
		want    []any
		differs bool
	}{
		"a policy that is and was well":   {verdict(1), []any{theirs}, []any{theirs}, false},
		"bad for the first time":          {verdict(1, custom), []any{theirs}, []any{theirs, cond("False", FailsClosed, closed, 1, now)}, true},
		"bad and without effect":          {idle, nil, []any{cond("False", NoEffect, "It holds for no workload: spec.action: CUSTOM is not supported", 1, now)}, true},
		"bad in part":                     {partly, nil, []any{cond("False", LeftOut, "What cannot be enforced is left out: spec.action: CUSTOM is not supported", 1, now)}, true},
		"bad as before":                   {verdict(1, custom), []any{cond("False", FailsClosed, closed, 1, earlier)}, []any{cond("False", FailsClosed, closed, 1, earlier)}, false},
		"bad as before, in a new version": {verdict(2, custom), []any{cond("False", FailsClosed, closed, 1, earlier)}, []any{cond("False", FailsClosed, closed, 2, earlier)}, true},
		"mended":                          {verdict(2), []any{cond("False", FailsClosed, closed, 1, earlier), theirs}, []any{theirs, cond("True", Enforced, enforced, 2, now)}, true},
		"well since it was mended":        {verdict(2), []any{cond("True", Enforced, enforced, 2, earlier)}, []any{cond("True", Enforced, enforced, 2, earlier)}, false},
		"changed since it was mended":     {verdict(3), []any{cond("True", Enforced, enforced, 2, earlier)}, []any{cond("True", Enforced, enforced, 3, earlier)}, true},
		"bad again":                       {verdict(3, custom), []any{cond("True", Enforced, enforced, 2, earlier)}, []any{cond("False", FailsClosed, closed, 3, now)}, true},
		"there twice":                     {verdict(2), []any{cond("True", Enforced, enforced, 2, earlier), cond("False", "", "", 1, earlier)}, []any{cond("True", Enforced, enforced, 2, earlier)}, true},
		"without a time":                  {verdict(1, custom), []any{map[string]any{"type": Type, "status": "False"}}, []any{cond("False", FailsClosed, closed, 1, now)}, true},
		"beside what is no condition":     {verdict(1, custom), []any{"x", map[string]any{"type": 3}}, []any{"x", map[string]any{"type": 3}, cond("False", FailsClosed, closed, 1, now)}, true},
	} {
		got, differs := Wanted(c.verdict, c.have, noon)
		if diff := cmp.Diff(c.want, got); diff != "" || differs != c.differs {
			t.Errorf("%s: differs %v, want %v\n%s", name, differs, c.differs, diff)
		}
	}
}
