package world

import (
	"errors"
	"fmt"
)

// Kind says whom the services are for.
type Kind string

// The kinds.
const (
	// Open: ALLOW policies select a twentieth of the services. All others are everyone's, so every proxy has them.
	Open Kind = "open"
	// Closed: an ALLOW policy selects each service, and names five identities. A pod may call ten services.
	Closed Kind = "closed"
)

// Sizes of a world.
type Sizes struct {
	Kind        Kind `json:"world"`
	Nodes       int  `json:"nodes"`
	PodsPerNode int  `json:"podsPerNode"` // with a proxy to simulate; the other pods have none that asks for anything
	Services    int  `json:"services"`
	Endpoints   int  `json:"endpoints"` // of each service
	Namespaces  int  `json:"namespaces"`
	Targets     int  `json:"targets"` // services that have one endpoint more, which changes
	// Requests has the workloads with a proxy and a policy take tokens, too, and ask an external authorizer.
	Requests bool `json:"requests"`
}

// Validate refuses sizes that do not fit together.
func (s Sizes) Validate() error {
	switch {
	case s.Kind != Open && s.Kind != Closed:
		return fmt.Errorf("no world %q: want %s or %s", s.Kind, Open, Closed)
	case s.Nodes <= 0 || s.PodsPerNode <= 0 || s.Services <= 0 || s.Endpoints <= 0 || s.Namespaces <= 0 || s.Targets <= 0:
		return errors.New("every size must be positive")
	case s.Proxies()%s.Endpoints != 0:
		return fmt.Errorf("%d proxies cannot stand behind services of %d endpoints: not a multiple", s.Proxies(), s.Endpoints)
	case s.simulated() < s.Namespaces:
		return fmt.Errorf("%d workloads with proxies are too few for %d namespaces", s.simulated(), s.Namespaces)
	case s.identities() < s.simulated() || s.identities() <= span:
		return fmt.Errorf("%d services are too few: half of them call, and that is to be more than %d workloads, and all those with proxies (%d)",
			s.Services, span, s.simulated())
	case s.target(s.Targets-1) >= s.Services:
		return fmt.Errorf("%d services cannot change: there are %d, of which policies select %d", s.Targets, s.Services, s.guarded())
	case s.Kind == Closed && s.Targets > 2*s.simulated():
		return fmt.Errorf("%d services cannot change: of some no proxy would hear", s.Targets)
	case s.pods() > 250*250 || s.Namespaces > 100:
		return errors.New("too large: at most 62500 pods in 100 namespaces")
	}
	return nil
}

// Proxies is the number of those that are simulated.
func (s Sizes) Proxies() int { return s.Nodes * s.PodsPerNode }

func (s Sizes) pods() int { return s.Services * s.Endpoints }

// simulated is the number of workloads whose pods have a simulated proxy.
func (s Sizes) simulated() int { return s.Proxies() / s.Endpoints }

// guarded is the number of workloads that have a policy: the first ones.
func (s Sizes) guarded() int {
	if s.Kind == Closed {
		return s.Services
	}
	return max(1, s.Services/20)
}

// target is the n-th of the services that change: in the open world one that is everyone's.
func (s Sizes) target(n int) int {
	if s.Kind == Closed {
		return n % s.Targets
	}
	return s.guarded() + n%s.Targets
}

// identities is the number of workloads that call services: the first ones.
func (s Sizes) identities() int { return s.Services / 2 }

// Whom a policy names: workloads so far from half its own number. Each is named by ten policies, and those that are near each other by
// some of the same, so a service that one workload with proxies may call is mostly for five of them.
var distances = []int{0, 1, 3, 7, span}

const span = 12

// callers lists the workloads that the policy of a workload names, if it has one.
func (s Sizes) callers(workload int) []int {
	var out []int
	for _, d := range distances {
		out = append(out, (workload/2+d)%s.identities())
	}
	return out
}
