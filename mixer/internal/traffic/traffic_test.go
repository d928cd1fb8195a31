package traffic

import (
	"testing"
	"time"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

func report(node, source, code string, value float64) *telemetryv1.NodeReport {
	return &telemetryv1.NodeReport{Node: node, Workloads: []*telemetryv1.WorkloadReport{{
		Workload:          &telemetryv1.Workload{Node: node, Namespace: "finance", Pod: "payroll-" + node, Identity: "spiffe://cluster.local/ns/finance/sa/payroll"},
		CertificateSerial: "0a",
		Counters: []*telemetryv1.Counter{{Name: "istio_requests_total", Value: value, Labels: map[string]string{
			"reporter": "destination", "source_principal": source, "response_code": code, "destination_service_name": "payroll",
			"destination_service_namespace": "finance", "connection_security_policy": "mutual_tls",
		}}},
	}}}
}

func TestLatestReportsOfAllNodesAddUp(t *testing.T) {
	now := time.Unix(0, 0)
	table := New(func() time.Time { return now })
	table.Take(report("n1", "spiffe://cluster.local/ns/a/sa/b", "200", 5))
	table.Take(report("n1", "spiffe://cluster.local/ns/a/sa/b", "200", 7)) // replaces
	table.Take(report("n2", "spiffe://cluster.local/ns/a/sa/b", "403", 2))
	o := table.Overview()
	if len(o.Edges) != 1 || o.Edges[0].Requests != 9 || o.Edges[0].Denied != 2 {
		t.Fatalf("edges %+v", o.Edges)
	}
	if len(o.Services) != 1 || o.Services[0].Name != "payroll" || o.Services[0].Requests != 9 {
		t.Fatalf("services %+v", o.Services)
	}
	if len(o.Certificates) != 2 {
		t.Fatalf("certificates %+v", o.Certificates)
	}
	now = now.Add(staleAfter + time.Second)
	table.Take(report("n2", "spiffe://cluster.local/ns/a/sa/b", "403", 3))
	if got := table.Nodes(); len(got) != 1 || got[0] != "n2" {
		t.Fatalf("nodes %v, want only n2", got)
	}
}

// Labels are what a proxy wrote of a peer; a handshake proves identities of one form.
func TestAStrangersNameIsNoEdge(t *testing.T) {
	table := New(time.Now)
	r := report("n1", "spiffe://cluster.local/ns/a/sa/b\r\nforged", "200", 5)
	r.Workloads[0].Counters[0].Labels["destination_service_namespace"] = "kube-system"
	table.Take(r)
	o := table.Overview()
	if len(o.Edges) != 1 || o.Edges[0].Source != "unknown" || o.Edges[0].Security != "none" || o.Services[0].Namespace != "finance" {
		t.Fatalf("%+v %+v", o.Edges, o.Services)
	}
}
