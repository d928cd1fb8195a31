package authz

import (
	"fmt"
	"testing"
)

func TestNearestAlternativeSaysWhatIsMissing(t *testing.T) {
	policies := good(t, `{"rules":[{"from":[{"source":{"principals":["*/sa/other"]}},{"source":{"principals":["cluster.local/ns/finance/sa/auditor"]}}],"to":[{"operation":{"methods":["GET"],"paths":["/accounts/*"]}}],
		"when":[{"key":"request.headers[x-role]","values":["auditor"],"notValues":["gu*"]}]}]}`)
	req := request("auditor", "POST", "/accounts/1")
	req.Headers = map[string][]string{"x-role": {"auditor", "guest"}}
	r := Explain(policies, req).Policies[0].Rules[0]
	want := []Missed{
		{Field: "spec.rules[0].to[0].operation.methods", Asked: []string{"GET"}, Had: []string{"POST"}},
		{Field: "spec.rules[0].when[0].notValues", Not: true, Asked: []string{"gu*"}, Had: []string{"auditor", "guest"}},
	}
	if r.Matches || r.Held != 2 || fmt.Sprint(r.Missed) != fmt.Sprint(want) {
		t.Errorf("%+v, want %+v", r, want)
	}
}
