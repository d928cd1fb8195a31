package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Whoever reads that a proxy has an ERROR finds the pod, the resource and the proxy's reason below.
func TestWhatAProxyRefusesIsNamed(t *testing.T) {
	var b bytes.Buffer
	showProxies(printer.New(&b), []proxy{
		{Proxy: "web-1.shop", Identity: "spiffe://cluster.local/ns/shop/sa/web", Pilot: "bulwark-pilot-1", Types: map[string]deltaxds.Status{"CDS": {}, "LDS": {
			Nacked: 3, Resource: "10.96.0.1_80", Error: "address in use\nall is well"}}},
		{Proxy: "web-2.shop", Types: map[string]deltaxds.Status{"CDS": {Pending: true}, "ECDS": {Error: "no such filter"}}},
	})
	got := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(got) != 5 || !strings.Contains(got[1], "ERROR") || !strings.Contains(got[2], "STALE") {
		t.Fatalf("shows\n%s", &b)
	}
	for i, want := range []string{`web-1.shop refuses LDS resource 10.96.0.1_80: "address in use\nall is well"`, `web-2.shop refuses ECDS resource (which one is being found out): no such filter`} {
		if got[3+i] != want {
			t.Errorf("says\n%s\nwant\n%s", got[3+i], want)
		}
	}
}
