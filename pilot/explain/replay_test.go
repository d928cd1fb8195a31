package explain

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// recorded is a decision of payroll's proxy.
func recorded(index uint64, account, method, path string, allowed bool) *telemetryv1.Record {
	e := &telemetryv1.Event{
		Observer: &telemetryv1.Workload{Namespace: "finance", Pod: "payroll-5d9c-abc", ServiceAccount: "payroll"}, Reporter: telemetryv1.Reporter_REPORTER_DESTINATION,
		SourceAddress: "10.0.0.9:4000", DestinationAddress: "10.0.0.8:8080", Method: method, Path: path, Authority: "payroll.finance", Verdict: telemetryv1.Verdict_VERDICT_DENIED,
	}
	if account != "" {
		e.SourceIdentity = "spiffe://cluster.local/ns/finance/sa/" + account
	}
	if allowed {
		e.Verdict = telemetryv1.Verdict_VERDICT_ALLOWED
	}
	return &telemetryv1.Record{Index: index, Event: e}
}

func TestReplayCountsWhatWouldChange(t *testing.T) {
	records := []*telemetryv1.Record{
		recorded(1, "account-auditor", "GET", "/accounts/1", true), recorded(2, "account-auditor", "GET", "/accounts/22?x=y", true), recorded(3, "account-auditor", "GET", "/accounts/all", true),
		recorded(4, "web", "GET", "/accounts/1", false), recorded(5, "", "GET", "/accounts/1", false),
		{Index: 6, Event: &telemetryv1.Event{Kind: telemetryv1.Kind_KIND_ISSUANCE}},
	}
	const replace = "methods: [GET], paths: [/accounts/*]"
	for _, c := range []struct {
		name, with string
		want       []string
		unknown    int
	}{
		{"as it is", replace, nil, 0},
		{"fewer paths", "methods: [GET], paths: [/accounts/all]", []string{"2 allowed→denied cluster.local/ns/finance/sa/account-auditor GET /accounts/{*} #1"}, 0},
		{"another verb", "methods: [POST]", []string{
			"2 allowed→denied cluster.local/ns/finance/sa/account-auditor GET /accounts/{*} #1", "1 allowed→denied cluster.local/ns/finance/sa/account-auditor GET /accounts/all #3"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := meshOf(t, objectsOf(t, strings.Replace(sample(t), replace, c.with, 1)))
			r := m.Replay(records)
			var got []string
			for _, x := range r.Changed {
				got = append(got, fmt.Sprintf("%d %s→%s %s %s %s #%d", x.Count, x.Before, x.After, x.Client, x.Method, x.Path, x.Event))
			}
			if !slices.Equal(got, c.want) || len(r.Unknown) != c.unknown || r.Decisions != 5 || r.Skipped["no decision about a request"] != 1 {
				t.Errorf("%q, want %q\n%+v", got, c.want, r)
			}
		})
	}
	// Of what the client's own proxy refused there is the Service's address.
	away := recorded(8, "web", "GET", "/accounts/1", false)
	away.Event.Reporter, away.Event.DestinationAddress = telemetryv1.Reporter_REPORTER_SOURCE, "10.96.0.7:80"
	away.Event.Observer = &telemetryv1.Workload{Namespace: "finance", Pod: "web-1", Identity: away.GetEvent().GetSourceIdentity()}
	addressed := strings.Replace(sample(t), "spec:\n  selector: {app: payroll}", "spec:\n  clusterIP: 10.96.0.7\n  clusterIPs: [10.96.0.7]\n  selector: {app: payroll}", 1)
	m := meshOf(t, objectsOf(t, addressed, policyYAML("web", `{rules: [{from: [{source: {serviceAccounts: [web]}}]}]}`)))
	if r := m.Replay([]*telemetryv1.Record{away}); len(r.Changed) != 1 || r.Changed[0].Port != 8080 || r.Changed[0].After != "allowed" {
		t.Errorf("what was out of reach: %+v", r)
	}
	if e, err := m.Recorded(away); err != nil || e.Ask.To != "svc/payroll" {
		t.Errorf("what was out of reach: %+v, %v", e, err)
	}
	header := policyYAML("role", `{action: DENY, rules: [{to: [{operation: {paths: [/accounts/all]}}], when: [{key: "request.headers[x-role]", notValues: [auditor]}]}]}`)
	r := meshOf(t, objectsOf(t, sample(t), header)).Replay(records)
	if len(r.Changed) != 0 || len(r.Unknown) != 1 || r.Unknown[0].Event != 3 || !strings.Contains(r.Unknown[0].Why, "header x-role") {
		t.Errorf("what depends on a header: %+v", r)
	}
}

func TestWhatIsSuggestedAdmitsWhatWasSeenAndNoMore(t *testing.T) {
	var records []*telemetryv1.Record
	for i := range 30 {
		records = append(records, recorded(uint64(i), "account-auditor", []string{"GET", "HEAD"}[i%2], fmt.Sprintf("/accounts/%d", i/2), true))
		records = append(records, recorded(uint64(i), "account-auditor", "GET", fmt.Sprintf("/reports/name-%c/summary", 'a'+i%20), true))
	}
	records = append(records, recorded(90, "web", "POST", "/orders", true), recorded(91, "web", "DELETE", "/orders", false), recorded(92, "", "GET", "/x", true), recorded(93, "web", "GET", "/a/;b", true))
	m := meshOf(t, objectsOf(t, sample(t)))
	s, err := m.Suggest("finance", "payroll", records, false)
	if err != nil || s.From != 61 || s.Admitted != 61 || len(s.Left) != 2 {
		t.Fatalf("%+v, %v", s, err)
	}
	want := "map[action:ALLOW rules:[" +
		"map[from:[map[source:map[principals:[cluster.local/ns/finance/sa/account-auditor]]]] to:[map[operation:map[methods:[HEAD] paths:[/accounts/{*}] ports:[8080]]] map[operation:map[methods:[GET] paths:[/accounts/{*} /reports/{*}/summary] ports:[8080]]]]] " +
		"map[from:[map[source:map[principals:[cluster.local/ns/finance/sa/web]]]] to:[map[operation:map[methods:[POST] paths:[/orders] ports:[8080]]]]]] selector:map[matchLabels:map[app:payroll]]]"
	if got := fmt.Sprint(s.Policy["spec"]); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	// With a connection that is not HTTP both are admitted, which takes two rules.
	connection := recorded(94, "account-auditor", "", "", true)
	connection.Event.Protocol, connection.Event.Method, connection.Event.Path, connection.Event.Authority = "TCP", "", "", ""
	connection.Event.DestinationAddress = "10.0.0.1:9000"
	if s, err := m.Suggest("finance", "payroll", append(records, connection), false); err != nil || s.From != 62 || s.Admitted != 62 {
		t.Errorf("with a connection: %+v, %v", s, err)
	}
	if s, err := m.Suggest("finance", "web", records, false); err != nil || s.Policy != nil || len(s.Notes) == 0 {
		t.Errorf("of what nothing was seen: %+v, %v", s, err)
	}
}

func TestTemplatesFollowTheRules(t *testing.T) {
	var many []string
	for c := range 9 {
		many = append(many, fmt.Sprintf("/users/u%c/x", 'a'+c))
	}
	for _, c := range []struct{ paths, want []string }{
		{[]string{"/a/1", "/a/2"}, []string{"/a/{*}"}},
		{[]string{"/a/1?b=c"}, []string{"/a/{*}"}},
		{[]string{"/a/0123456789ab/b"}, []string{"/a/{*}/b"}},
		{[]string{"/a/6ba7b810-9dad-11d1-80b4-00c04fd430c8"}, []string{"/a/{*}"}},
		{[]string{"/cafe", "/v1/status"}, []string{"/cafe", "/v1/status"}},
		{many, []string{"/users/{*}/x"}},
		{many[:8], many[:8]},
		{[]string{"/"}, []string{"/"}},
	} {
		if got := generalised(c.paths); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.paths, got, c.want)
		}
	}
}

func TestAHundredThousandDecisionsAreReplayedInTime(t *testing.T) {
	var records []*telemetryv1.Record
	for i := range 100_000 {
		r := recorded(uint64(i), fmt.Sprint("a", i%500), "GET", fmt.Sprintf("/accounts/%d/x%d", i%500, i), i%3 > 0)
		r.Event.Observer.Pod, r.Event.Observer.ServiceAccount = fmt.Sprint("w", i%100), fmt.Sprint("a", i%100)
		records = append(records, r)
	}
	m := meshOf(t, objectsOf(t, crowd(500, "-new")))
	start := time.Now()
	r := m.Replay(records)
	if took := time.Since(start); took > slower*10*time.Second || r.Decisions != len(records) || len(r.Changed) == 0 {
		t.Errorf("after %s: %d decisions, %d changed", took, r.Decisions, len(r.Changed))
	} else {
		t.Logf("%d decisions after %s", r.Decisions, took)
	}
}
