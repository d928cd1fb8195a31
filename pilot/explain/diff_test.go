package explain

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func words(a Access) string {
	return strings.TrimPrefix(a.Workload, "finance/deploy/") + fmt.Sprint(a.Ports, a.Clients, a.Methods, a.Paths, a.Conditions)
}

const custom = `---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: asks, namespace: finance}
spec:
  selector: {matchLabels: {app: payroll}}
  action: CUSTOM
  provider: {name: opa}
  rules: [{from: [{source: {serviceAccounts: [finance/account-auditor]}}], to: [{operation: {paths: [/accounts/1]}}]}]
`

func TestDiffNamesWhatChangesAndNothingElse(t *testing.T) {
	const auditor = " [cluster.local/ns/finance/sa/account-auditor] "
	for _, c := range []struct{ name, old, new, want string }{
		{"nothing", "", "", ""},
		{"the order of rules' values", "[GET]", "[GET, GET]", ""},
		{"a method", "methods: [GET]", "methods: [GET, HEAD]", "true payroll[8080 HTTP]" + auditor + "[HEAD] [/accounts/*] []"},
		{"a port that is taken away", `ports: ["9000"]`, `ports: ["9001"]`,
			"false payroll[9000 TCP]" + auditor + "[] [] []\ntrue payroll[9001 HTTP]" + auditor + "[any but CONNECT, ambiguous] [any but ambiguous] []\ntrue payroll[9001 TCP]" + auditor + "[] [] []"},
		{"an authorizer that is asked", "---\n", custom + "---\n",
			"opatrue payroll[any other HTTP 7000 HTTP 8080 HTTP] [account finance/account-auditor] [any but CONNECT, ambiguous] [/accounts/1] []\nopatrue payroll[any other TCP 9000 TCP] [account finance/account-auditor] [] [] []"},
		{"a policy that is tried out", "name: ledger-readers, namespace: finance}", "name: ledger-readers, namespace: finance, annotations: {istio.io/dry-run: 'true'}}",
			"false payroll[9000 TCP]" + auditor + "[] [] []"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Diff(meshOf(t, objectsOf(t, sample(t))), meshOf(t, objectsOf(t, strings.Replace(sample(t), c.old, c.new, 1))))
			var got []string
			for _, change := range d.Changes {
				got = append(got, fmt.Sprint(change.Asked, change.After, " ", words(change.Access)))
			}
			if strings.Join(got, "\n") != c.want || d.Compared != 3 {
				t.Errorf("got\n%s\nwant\n%s\n%+v", strings.Join(got, "\n"), c.want, d)
			}
		})
	}
}

func TestWhoCanAndWhatCanAreTheTwoSidesOfOneThing(t *testing.T) {
	m := meshOf(t, objectsOf(t, sample(t)))
	who, err := m.WhoCan(Ask{Namespace: "finance", To: "svc/payroll", Port: 80, Method: "GET"})
	if err != nil || len(who.Access) != 1 || words(who.Access[0]) != "payroll[8080 HTTP] [cluster.local/ns/finance/sa/account-auditor] [GET] [/accounts/*] []" {
		t.Errorf("%+v, %v", who, err)
	}
	what, err := m.WhatCan(Ask{Namespace: "finance", From: "account-auditor", Method: "GET", Port: 8080}, "finance")
	var got []string
	for _, a := range what.Access {
		got = append(got, words(a))
	}
	if err != nil || len(got) == 0 || got[0] != words(who.Access[0]) {
		t.Errorf("%q, %v", got, err)
	}
	if who, err = m.WhoCan(Ask{Namespace: "finance", To: "deploy/payroll", Method: "DELETE", Path: "/accounts/1", Port: 8080}); err != nil || len(who.Access) != 0 {
		t.Errorf("who can delete: %+v, %v", who, err)
	}
	if what, err = m.WhatCan(Ask{Namespace: "finance", Plaintext: true}, ""); err != nil || len(what.Access) != 0 {
		t.Errorf("without identity, under STRICT: %+v, %v", what, err)
	}
}

// Who can and what can say where an external authorizer has a word, which they cannot know.
func TestWhoCanAndWhatCanNameAuthorizers(t *testing.T) {
	const want = "[what finance/asks matches is admitted only if the external authorizer opa allows it, too]"
	m := meshOf(t, objectsOf(t, sample(t)+custom))
	who, err := m.WhoCan(Ask{Namespace: "finance", To: "svc/payroll"})
	if err != nil || fmt.Sprint(who.Notes) != want {
		t.Errorf("%q, %v", who.Notes, err)
	}
	what, err := m.WhatCan(Ask{Namespace: "finance", From: "account-auditor"}, "")
	if err != nil || fmt.Sprint(what.Notes) != want {
		t.Errorf("%q, %v", what.Notes, err)
	}
}

// crowd is a namespace of workloads and policies, of which one is for another account than it was.
func crowd(n int, other string) string {
	var sb strings.Builder
	for i := range n / 5 {
		fmt.Fprintf(&sb, "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: w%d, namespace: finance}\nspec: {selector: {matchLabels: {app: w%d}}, template: {metadata: {labels: {app: w%d}}, spec: {serviceAccountName: a%d}}}\n", i, i, i, i)
		fmt.Fprintf(&sb, "---\napiVersion: v1\nkind: Service\nmetadata: {name: w%d, namespace: finance}\nspec: {selector: {app: w%d}, ports: [{name: http, port: 80, targetPort: 8080}]}\n", i, i)
	}
	for i := range n {
		account := fmt.Sprint("a", i)
		if i == n/2 {
			account += other
		}
		selector := fmt.Sprintf("selector: {matchLabels: {app: w%d}}, ", i%(n/5))
		if i%50 == 0 {
			selector = "" // of all
		}
		fmt.Fprintf(&sb, "---\n%s\n", policyYAML(fmt.Sprint("p", i), fmt.Sprintf(
			`{%srules: [{from: [{source: {principals: [cluster.local/ns/finance/sa/%s]}}], to: [{operation: {methods: [GET, POST], paths: ["/accounts/%d/*", "/v1/{*}/x%d", "*/report-%d"]}}]}]}`, selector, account, i, i, i%10)))
	}
	return sb.String()
}

func TestFiveHundredPoliciesAreComparedInTime(t *testing.T) {
	before, after := objectsOf(t, crowd(500, "")), objectsOf(t, crowd(500, "-new"))
	start := time.Now()
	d := Diff(meshOf(t, before), meshOf(t, after))
	if took := time.Since(start); took > slower*5*time.Second || len(d.Untold) > 0 || d.Compared != 100 || len(d.Changes) != 2*100 {
		t.Errorf("after %s: %d changes of %d workloads, untold %v", took, len(d.Changes), d.Compared, d.Untold)
	} else {
		t.Logf("%d changes of %d workloads after %s", len(d.Changes), d.Compared, took)
	}
}
