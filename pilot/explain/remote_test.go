package explain

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// A client whom a load balancer has named is judged by its own address in what is explained, changed and decided again; all who come by the load balancer have its.
func TestClientsOfLoadBalancersAreToldApart(t *testing.T) {
	const barred = `{action: DENY, rules: [{from: [{source: {remoteIpBlocks: [198.51.100.0/24]}}]}]}`
	const partners = `{rules: [{from: [{source: {remoteIpBlocks: [203.0.113.0/24]}}]}]}`
	objects := objectsOf(t, strings.Replace(sample(t), "mode: STRICT", "mode: PERMISSIVE", 1), policyYAML("barred", barred), policyYAML("partners", partners))
	m := meshOf(t, objects)
	of := func(remote string, allowed bool) *telemetryv1.Record {
		r := recorded(1, "", "GET", "/accounts/1", allowed)
		r.Event.RemoteAddress = remote
		return r
	}
	explained := func(record *telemetryv1.Record) *Answer {
		t.Helper()
		r, err := m.Recorded(record)
		if err != nil {
			t.Fatal(err)
		}
		e, err := m.Explain(r.Ask)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	// Where the installation believes nobody, the peer counts.
	if e := explained(of("203.0.113.9:1", false)); e.Allowed || len(e.Notes) == 0 || !strings.Contains(strings.Join(e.Notes, "; "), "believes nobody") {
		t.Errorf("without load balancers: %+v", e)
	}
	believing := options
	believing.LoadBalancers = []netip.Prefix{netip.MustParsePrefix("10.0.0.9/32")}
	var err error
	if m, err = New(objects, believing, time.Now()); err != nil {
		t.Fatal(err)
	}
	if e := explained(of("203.0.113.9:1", false)); !e.Allowed || e.Policy != "finance/partners rule 0" {
		t.Errorf("a partner: %+v", e)
	}
	if e := explained(of("198.51.100.7:1", false)); e.Allowed || e.Policy != "finance/barred rule 0" || len(e.Change) == 0 || !strings.Contains(e.Request, "from 198.51.100.7 by 10.0.0.9") {
		t.Errorf("one who is barred: %+v", e)
	}
	e := explained(of("192.0.2.55:1", false))
	said, err := json.Marshal(e.Change)
	if err != nil || e.Allowed || e.Policy != "" || !strings.Contains(string(said), `"remoteIpBlocks":["192.0.2.55"]`) || strings.Contains(string(said), "10.0.0.9") {
		t.Errorf("one whom nothing admits: %+v, to be changed by %s", e, said)
	}
	if r := m.Replay([]*telemetryv1.Record{of("203.0.113.9:1", true), of("198.51.100.7:1", false), of("", false)}); r.Decisions != 3 || len(r.Changed)+len(r.Unknown) != 0 {
		t.Errorf("what was decided so is decided otherwise: %+v", r)
	}
	if r := m.Replay([]*telemetryv1.Record{of("192.0.2.55:1", true)}); len(r.Changed) != 1 || r.Changed[0].After != "denied" {
		t.Errorf("what would be denied is not: %+v", r)
	}
}
