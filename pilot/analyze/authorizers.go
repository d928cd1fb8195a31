package analyze

import (
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// authorizers finds policies whose external authorizer cannot be asked. That the installation has none of the name is said by Pilot.
func authorizers(w *world, r *report) {
	for _, p := range w.policies {
		i := slices.IndexFunc(w.set.Authorizers, func(a authorizer.Provider) bool { return a.Name == p.Provider })
		if p.Action != authz.Custom || p.Ignored || i < 0 {
			continue
		}
		const field = "spec.provider.name"
		a := w.set.Authorizers[i]
		s := w.snap.Service(a.Service)
		if s == nil {
			if w.Whole {
				r.say(NoAuthorizer, p.object, field, "there is no Service %s, where the external authorizer %s is asked: %s", a.Service, a.Name, unanswered(a))
			}
			continue
		}
		at := slices.IndexFunc(s.Ports, func(sp registry.ServicePort) bool { return sp.Number == a.Port })
		switch {
		case at < 0:
			r.say(NoAuthorizer, p.object, field, "Service %s has no port %d, where the external authorizer %s is asked: %s", a.Service, a.Port, a.Name, unanswered(a))
		case a.GRPC && s.Ports[at].Protocol != protocol.HTTP2 && s.Ports[at].Protocol != protocol.Auto:
			r.say(NoAuthorizer, p.object, field, "port %d of Service %s is declared to speak %s, and the external authorizer %s is asked there over gRPC: %s", a.Port, a.Service, s.Ports[at].Protocol, a.Name,
				unanswered(a))
		}
	}
}

func unanswered(a authorizer.Provider) string {
	if a.FailOpen {
		return "what this matches is let pass"
	}
	return "what this matches is denied"
}
