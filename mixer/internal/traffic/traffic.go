// Package traffic holds what the proxies last counted and which certificates they hold, as the agents report it.
package traffic

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// staleAfter is when a node that has stopped reporting is forgotten.
const staleAfter = 2 * time.Minute

// Table is safe for concurrent use.
type Table struct {
	now   func() time.Time
	mu    sync.Mutex
	nodes map[string]node
}

type node struct {
	seen   time.Time
	report *telemetryv1.NodeReport
}

// New returns an empty table.
func New(now func() time.Time) *Table { return &Table{now: now, nodes: map[string]node{}} }

// Take replaces what is known of a node.
func (t *Table) Take(r *telemetryv1.NodeReport) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nodes[r.GetNode()] = node{t.now(), r}
	for name, n := range t.nodes {
		if t.now().Sub(n.seen) > staleAfter {
			delete(t.nodes, name)
		}
	}
}

// Certificate is what a workload holds.
type Certificate struct {
	Namespace string    `json:"namespace"`
	Pod       string    `json:"pod"`
	Node      string    `json:"node"`
	Identity  string    `json:"identity"`
	Serial    string    `json:"serial"`
	Expiry    time.Time `json:"expiry"`
}

// Edge is who calls whom, as the servers' proxies counted it.
type Edge struct {
	Source      string  `json:"source"` // identity, "unknown" without mutual TLS
	Destination string  `json:"destination"`
	Service     string  `json:"service"`
	Security    string  `json:"security"` // mutual_tls or none
	Requests    float64 `json:"requests"`
	Denied      float64 `json:"denied"` // answered 403
	Errors      float64 `json:"errors"` // answered 5xx
}

// Service is one service and the verdicts on calls to it.
type Service struct {
	Name      string  `json:"name"`
	Namespace string  `json:"namespace"`
	Requests  float64 `json:"requests"`
	Denied    float64 `json:"denied"`
	Errors    float64 `json:"errors"`
}

// Overview is the state of the mesh as its proxies see it.
type Overview struct {
	Services     []Service     `json:"services"`
	Edges        []Edge        `json:"edges"`
	Certificates []Certificate `json:"certificates"`
}

// Overview adds up the latest reports.
func (t *Table) Overview() Overview {
	t.mu.Lock()
	defer t.mu.Unlock()
	edges := map[[4]string]*Edge{}
	services := map[[2]string]*Service{}
	out := Overview{Services: []Service{}, Edges: []Edge{}, Certificates: []Certificate{}}
	for _, n := range t.nodes {
		for _, w := range n.report.GetWorkloads() {
			id := w.GetWorkload()
			out.Certificates = append(out.Certificates, Certificate{
				Namespace: id.GetNamespace(), Pod: id.GetPod(), Node: id.GetNode(), Identity: id.GetIdentity(),
				Serial: w.GetCertificateSerial(), Expiry: w.GetCertificateExpiry().AsTime(),
			})
			for _, c := range w.GetCounters() {
				addCounter(edges, services, id, c)
			}
		}
	}
	for _, e := range edges {
		out.Edges = append(out.Edges, *e)
	}
	for _, s := range services {
		out.Services = append(out.Services, *s)
	}
	slices.SortFunc(out.Edges, func(a, b Edge) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Destination, b.Destination), cmp.Compare(a.Service, b.Service))
	})
	slices.SortFunc(out.Services, func(a, b Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	slices.SortFunc(out.Certificates, func(a, b Certificate) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod))
	})
	return out
}

func addCounter(edges map[[4]string]*Edge, services map[[2]string]*Service, w *telemetryv1.Workload, c *telemetryv1.Counter) {
	l := c.GetLabels()
	if l["reporter"] != "destination" || (c.GetName() != "istio_requests_total" && c.GetName() != "istio_tcp_connections_opened_total") {
		return
	}
	name := cmp.Or(known(l["destination_service_name"]), known(l["destination_workload"]), w.GetServiceAccount())
	namespace := w.GetNamespace() // a node speaks for its own pods, whatever their proxies say
	source, security := l["source_principal"], "none"
	if _, err := spiffe.Parse(source); err != nil {
		source = "" // of no form that a handshake proves
	}
	if l["connection_security_policy"] == "mutual_tls" && source != "" {
		security = "mutual_tls"
	}
	key := [4]string{source, w.GetIdentity(), namespace + "/" + name, security}
	edge := edges[key]
	if edge == nil {
		edge = &Edge{Source: cmp.Or(key[0], "unknown"), Destination: key[1], Service: key[2], Security: key[3]}
		edges[key] = edge
	}
	service := services[[2]string{namespace, name}]
	if service == nil {
		service = &Service{Name: name, Namespace: namespace}
		services[[2]string{namespace, name}] = service
	}
	edge.Requests += c.GetValue()
	service.Requests += c.GetValue()
	switch code := l["response_code"]; {
	case code == "403":
		edge.Denied += c.GetValue()
		service.Denied += c.GetValue()
	case len(code) == 3 && code[0] == '5':
		edge.Errors += c.GetValue()
		service.Errors += c.GetValue()
	}
}

func known(label string) string {
	if label == "unknown" || label == "-" {
		return ""
	}
	return label
}

// Nodes returns the names of the nodes that report.
func (t *Table) Nodes() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.nodes))
}
