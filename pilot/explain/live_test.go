package explain

import (
	"strings"
	"testing"
)

func TestHeldRulesAreComparedWhateverTheirSpelling(t *testing.T) {
	const rule = "ns[finance]-policy[payroll-readers]-rule[0]"
	const other = "ns[finance]-policy[ledger-readers]-rule[0]"
	const audit = "ns[finance]-policy[audit-everything]-rule[0]"
	sent := `{"EXTENSIONCONFIG":[{"typedConfig":{"rules":{"policies":{"` + rule + `":{"permissions":[{"urlPath":{"path":{"exact":"/a_b"}}}]},"` + other + `":{"a":1},"` + audit + `":{},"ns[bulwark-system]-policy[plaintext]-rule[0]":{}}}}}]}`
	held := `{"configs":[{"ecds_filters":[{"typed_config":{"rules":{"policies":{"` + rule + `":{"permissions":[{"url_path":{"path":{"exact":"/a_b"}}}]},"` + other + `":{"a":2},"ns[finance]-policy[gone]-rule[0]":{},"ns[bulwark-system]-policy[plaintext]-rule[0]":{}}}}}]}]}`
	a, err1 := HeldIn([]byte(sent))
	b, err2 := HeldIn([]byte(held))
	rules, err3 := meshOf(t, objectsOf(t, sample(t))).Compare("finance", "payroll", a, b)
	if err1 != nil || err2 != nil || err3 != nil || len(rules) != 5 {
		t.Fatal(rules, err1, err2, err3)
	}
	want := map[string]HeldRule{
		"ns[bulwark-system]-policy[plaintext]-rule[0]": {Wanted: true, Sent: true, Held: true},
		"finance/payroll-readers rule 0":               {Wanted: true, Sent: true, Held: true},
		"finance/ledger-readers rule 0":                {Wanted: true, Sent: true, Held: true, Other: true},
		"finance/audit-everything rule 0":              {Wanted: true, Sent: true},
		"ns[finance]-policy[gone]-rule[0]":             {Held: true},
	}
	for _, r := range rules {
		w := want[r.Rule]
		w.Rule, w.Action = r.Rule, r.Action
		if r != w || r.Good() != (strings.Contains(r.Rule, "payroll") || strings.Contains(r.Rule, "plaintext")) {
			t.Errorf("%+v, want %+v", r, w)
		}
	}
}
