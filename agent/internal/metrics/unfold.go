package metrics

import (
	"strings"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

const unknown = "unknown"

// workload is what metrics say about a client or a server.
type workload struct{ name, namespace, revision, principal string }

// owner is whose proxy it is: what the agent knows of the pod, and what the proxy says of itself.
type owner struct {
	workload
	cluster string
}

// ownerOf reads what a proxy says of itself.
func ownerOf(pod *identity.Identity, labels []*dto.LabelPair) *owner {
	said := byName(labels)
	return &owner{
		workload{known(said[mesh.FoldedProxyName]), pod.Facts.Namespace, known(said[mesh.FoldedProxyRevision]), pod.ID.String()},
		known(said[mesh.FoldedProxyCluster]),
	}
}

// unfold returns the labels of Istio's standard metrics for a series that the owner's proxy counts, nil for one that is written in another way.
// A proxy of a server knows nothing of its client but the identity.
func (o *owner) unfold(labels []*dto.LabelPair) []*dto.LabelPair {
	fields := strings.Split(byName(labels)[mesh.FoldedLabel], mesh.FoldedSeparator)
	if len(fields) != mesh.FoldedFields {
		return nil
	}
	by, called, to, peer, outcome := fields[0], fields[1], fields[2], fields[3], fields[4]
	nobody := workload{unknown, unknown, unknown, unknown}
	client, server, reporter, security := nobody, nobody, "source", unknown
	var service, namespace string
	if by == mesh.CountedByClient {
		client, server = o.workload, workloadOf(to)
		server.principal = known(peer)
		service, namespace = serviceOf(called)
	} else {
		server, reporter, security = o.workload, "destination", "none"
		namespace, service = o.namespace, called
		if by == mesh.CountedByServer {
			client.principal, security = known(peer), "mutual_tls"
		}
	}
	host := unknown
	switch {
	case known(service) != unknown && known(namespace) != unknown:
		host = service + "." + namespace + ".svc." + mesh.ClusterDomain
	case by == mesh.CountedByClient && strings.Contains(service, "."): // a host outside of the mesh; words for what is none have no dot
		host = service
	}
	out := series{}
	out.add("reporter", reporter)
	out.workload("source", client, o.cluster)
	out.workload("destination", server, o.cluster)
	out.add("destination_service", host)
	out.add("destination_service_name", known(service))
	out.add("destination_service_namespace", known(namespace))
	out.add("connection_security_policy", security)
	out.outcome(outcome)
	return out
}

// serviceOf reads the host of a service, or a word for what is none.
func serviceOf(host string) (name, namespace string) {
	service, ok := strings.CutSuffix(host, ".svc."+mesh.ClusterDomain)
	if !ok {
		return host, ""
	}
	name, namespace, _ = strings.Cut(service, ".")
	return name, namespace
}

// series are the labels of one.
type series []*dto.LabelPair

func (s *series) add(name, value string) {
	*s = append(*s, &dto.LabelPair{Name: proto.String(name), Value: proto.String(value)})
}

func (s *series) workload(side string, w workload, cluster string) {
	s.add(side+"_workload", w.name)
	s.add(side+"_workload_namespace", w.namespace)
	s.add(side+"_canonical_service", w.name)
	s.add(side+"_canonical_revision", w.revision)
	s.add(side+"_app", w.name)
	s.add(side+"_version", w.revision)
	s.add(side+"_principal", w.principal)
	s.add(side+"_cluster", cluster)
}

// outcome is of a request, in four parts, or the flags of a connection. Flags are "-" where there are none, and a status of gRPC is empty.
func (s *series) outcome(text string) {
	parts := strings.Split(text, " ")
	if len(parts) != 4 {
		s.add("response_flags", text)
		s.add("request_protocol", "tcp")
		return
	}
	s.add("response_code", known(parts[0]))
	s.add("response_flags", parts[1])
	s.add("request_protocol", known(parts[2]))
	s.add("grpc_response_status", parts[3])
}

// workloadOf reads how Pilot writes a server's workload.
func workloadOf(text string) workload {
	parts := strings.Split(text, "/")
	if len(parts) != 3 {
		return workload{unknown, unknown, unknown, unknown}
	}
	return workload{name: known(parts[1]), namespace: known(parts[0]), revision: known(parts[2])}
}

// known replaces what Envoy writes where it knows nothing.
func known(value string) string {
	if value == "" || value == "-" {
		return unknown
	}
	return value
}

func byName(labels []*dto.LabelPair) map[string]string {
	out := make(map[string]string, len(labels))
	for _, l := range labels {
		out[l.GetName()] = l.GetValue()
	}
	return out
}
