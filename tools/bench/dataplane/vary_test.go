package dataplane

import (
	"testing"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// A variation that finds nothing to take away is known, as it would be measured to cost nothing.
func TestVariationsThatTakeNothingAwayAreKnown(t *testing.T) {
	table, err := deltaxds.NewResource("inbound", &route.RouteConfiguration{VirtualHosts: []*route.VirtualHost{{RetryPolicy: &route.RetryPolicy{RetryOn: "reset"}}}})
	if err != nil {
		t.Fatal(err)
	}
	by, err := named("retries+authority")
	if err != nil {
		t.Fatal(err)
	}
	varied := map[string]bool{}
	if _, err := vary(resources{deltaxds.RouteType: {"inbound": table}}, by, varied); err != nil || !varied["retries"] || varied["authority"] {
		t.Errorf("%v: %v", varied, err)
	}
}
