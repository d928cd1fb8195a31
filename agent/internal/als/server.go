// Package als receives the access log that a pod's Envoy writes of audited decisions and turns its entries into events.
package als

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// Sink keeps events.
type Sink interface {
	Append(*telemetryv1.Event) bool
}

// Hears is who is told of some events, with the UID of the pod whose proxy has decided.
type Hears struct {
	UnknownKey func(podUID string)                            // the proxy has refused a token that may be signed by a newer key than it has
	Tried      func(podUID string, would telemetryv1.Verdict) // policies on trial would have decided otherwise
}

type server struct {
	observer *telemetryv1.Workload
	sink     Sink
	hears    Hears
	received prometheus.Counter
	dropped  prometheus.Counter
}

// Attach adds the access log service to a pod's socket. Who an event's observer is comes from the socket, not from what
// the proxy says of itself.
func Attach(sink Sink, hears Hears, node string, reg prometheus.Registerer) func(*identity.Identity, grpc.ServiceRegistrar) func(context.Context) {
	received := prometheus.NewCounter(prometheus.CounterOpts{Name: "bulwark_agent_audit_events_total", Help: "Audit events received from proxies."})
	dropped := prometheus.NewCounter(prometheus.CounterOpts{Name: "bulwark_agent_audit_events_dropped_total", Help: "Audit events that could not be spooled."})
	reg.MustRegister(received, dropped)
	return func(p *identity.Identity, s grpc.ServiceRegistrar) func(context.Context) {
		s.RegisterService(&logs, &server{observer: Observer(p, node), sink: sink, hears: hears, received: received, dropped: dropped})
		return nil
	}
}

// Observer is a pod as Mixer is told of it.
func Observer(p *identity.Identity, node string) *telemetryv1.Workload {
	return &telemetryv1.Workload{
		Node: node, Namespace: p.Facts.Namespace, Pod: p.Facts.Pod, PodUid: p.Facts.UID,
		ServiceAccount: p.Facts.ServiceAccount, Identity: p.ID.String(),
	}
}

// export spools a batch before it answers. Envoy repeats a batch whose answer it did not get, so that an entry comes at
// least once. That it is spooled, not synced, is enough: a node that goes down takes its proxies' buffers along as well.
func (s *server) export(request []byte) (*emptypb.Empty, error) {
	batch, err := records(request)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	for _, r := range batch {
		s.keep(r.event())
	}
	return &emptypb.Empty{}, nil
}

func (s *server) keep(e *telemetryv1.Event) {
	e.Observer = s.observer
	// The identity on this side of the connection is the pod's, whatever the entry says.
	if e.Reporter == telemetryv1.Reporter_REPORTER_DESTINATION {
		e.DestinationIdentity = s.observer.GetIdentity()
	} else {
		e.SourceIdentity = s.observer.GetIdentity()
	}
	s.received.Inc()
	if ofUnknownKey(e) {
		s.hears.UnknownKey(s.observer.GetPodUid())
	}
	if t := e.GetTrial(); t != nil {
		s.hears.Tried(s.observer.GetPodUid(), t.GetVerdict())
	}
	if !s.sink.Append(e) {
		s.dropped.Inc()
	}
}
