package metrics

import (
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// What is on trial is counted of each proxy that has said whose it is, in two series whatever there is to count.
func TestTrialsHaveTwoSeriesOfAProxy(t *testing.T) {
	s := New()
	for _, name := range []string{"a", "b"} {
		s.Attach(newPod(t, name), grpc.NewServer())
	}
	const denied, allowed = telemetryv1.Verdict_VERDICT_DENIED, telemetryv1.Verdict_VERDICT_ALLOWED
	for _, v := range []telemetryv1.Verdict{denied, allowed, denied} {
		s.Tried("uid-a", v)
	}
	s.Tried("gone", denied)
	if got := scrape(t, s); strings.Contains(got, trialMetric) {
		t.Errorf("counted of proxies that have not said whose they are:\n%s", got)
	}
	for _, name := range []string{"a", "b"} {
		s.take("uid-"+name, []*dto.MetricFamily{counter("istio_series.proxy", 1, "name", "payroll")})
	}
	s.Tried("uid-b", allowed)
	got := scrape(t, s)
	for _, want := range []string{
		`{enforced="allowed",namespace="finance",pod="a",verdict="denied",workload="payroll"} 2`,
		`{enforced="denied",namespace="finance",pod="a",verdict="allowed",workload="payroll"} 1`,
		`{enforced="allowed",namespace="finance",pod="b",verdict="denied",workload="payroll"} 0`,
		`{enforced="denied",namespace="finance",pod="b",verdict="allowed",workload="payroll"} 1`,
	} {
		if !strings.Contains(got, trialMetric+want+"\n") {
			t.Errorf("missing %s in:\n%s", want, got)
		}
	}
	if strings.Count(got, trialMetric+"{") != 4 {
		t.Errorf("too much in:\n%s", got)
	}
}
