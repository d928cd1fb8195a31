package featuretest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/reach"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// untold returns how the services that a pod's proxy has differ from those that operators are told it may call.
func (p *pilot) untold(pod string, has holdings) []string {
	answer, err := reach.Of(p.registry.Snapshot(), settings, pod)
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", pod, err)}
	}
	told, known := []string{}, []string{}
	namespace, _, _ := strings.Cut(pod, "/")
	for _, s := range answer.Services {
		service := p.registry.Snapshot().Service(s.Service)
		for _, port := range s.Ports {
			for _, f := range service.Families() {
				told = append(told, "cluster/"+istiocompat.OutboundCluster(port.Number, compile.Subset(f), compile.HostOf(s.Service)))
				for _, clients := range []string{namespace, compile.Everywhere} { // it has what all have, also where it has a listener of its own that leads elsewhere
					if compile.SecuredAt(p.registry.Snapshot(), settings, service, port.Number, clients) {
						told = append(told, "cluster/"+compile.PortFor(p.registry.Snapshot(), settings, service, port.Number, f, clients).Cluster())
						break
					}
				}
			}
		}
	}
	for _, x := range answer.Outside {
		told = append(told, "cluster/"+compile.HostPort{Host: x.Host, Port: x.Port.Number}.Cluster(x.TLS != ""))
	}
	for _, name := range slices.Sorted(maps.Keys(has)) {
		if strings.HasPrefix(name, "cluster/outbound|") {
			known = append(known, name)
		}
	}
	slices.Sort(told)
	if d := cmp.Diff(told, known); d != "" {
		return []string{fmt.Sprintf("%s: what operators are told it may call (-) is not what its proxy has (+):\n%s", pod, d)}
	}
	return nil
}
