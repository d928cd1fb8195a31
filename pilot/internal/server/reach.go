package server

import (
	"errors"
	"net/http"

	"github.com/bulwark-mesh/bulwark/pilot/internal/reach"
)

// reach answers what a workload may call (?workload=NAMESPACE/POD), or who may call a service (?service=NAMESPACE/NAME).
func (p *Pilot) reach(r *http.Request) (any, error) {
	workload, service := r.URL.Query().Get("workload"), r.URL.Query().Get("service")
	switch {
	case (workload == "") == (service == ""):
		return nil, errors.New("ask for ?workload=NAMESPACE/POD or for ?service=NAMESPACE/NAME")
	case workload != "":
		return reach.Of(p.registry.Snapshot(), p.settings.compile(), workload)
	default:
		return reach.To(p.registry.Snapshot(), p.settings.compile(), service)
	}
}
