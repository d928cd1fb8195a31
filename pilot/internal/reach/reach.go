// Package reach answers operators who ask what a workload may call and who may call a service, with the reasons.
package reach

import (
	"fmt"
	"maps"
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	operatorv1 "github.com/bulwark-mesh/bulwark/pkg/api/operator/v1"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Of says what a pod ("namespace/name") may call.
func Of(snap *registry.Snapshot, set compile.Settings, pod string) (operatorv1.Reach, error) {
	p := snap.Pod(pod)
	if p == nil {
		return operatorv1.Reach{}, fmt.Errorf("there is no pod %s that runs, or Pilot has not heard of it yet", pod)
	}
	out := operatorv1.Reach{Pod: p.ID, ServiceAccount: p.ServiceAccount, Proxied: p.Proxied, Services: []operatorv1.Reachable{}}
	if !p.Proxied {
		return out, nil
	}
	sidecar := compile.SidecarOf(snap, set, p.Namespace, p.Labels)
	if sidecar != nil {
		out.Sidecar = sidecar.ID
	}
	for s := range snap.Services() {
		if len(s.Ports) == 0 {
			continue
		}
		audience := compile.AudienceOf(snap, set, s)
		by, admitted := audience.Admits(p.Namespace, p.ServiceAccount)
		switch {
		case !admitted:
			if !compile.Exported(s, p.Namespace) && admitsIfExported(snap, set, s, p) {
				out.NotExported = append(out.NotExported, s.ID)
			}
		case !compile.Imports(sidecar, p.Namespace, s):
			out.Hidden = append(out.Hidden, s.ID)
		default:
			out.Services = append(out.Services, operatorv1.Reachable{Service: s.ID, Ports: portsOf(s), By: by, Open: audience.Open, Everyone: audience.Everyone})
		}
	}
	out.Confined = sidecar.Confines()
	out.Outside = outside(snap, set, p.Namespace, sidecar)
	return out, nil
}

// outside lists what workloads of a namespace know outside of the mesh, for which a Sidecar holds, or none does.
func outside(snap *registry.Snapshot, set compile.Settings, namespace string, sidecar *registry.Sidecar) (out []operatorv1.External) {
	whose := compile.OutsideFor(snap, set, namespace, sidecar)
	if whose.Namespace == "" {
		return nil
	}
	for _, x := range compile.CompileOutside(snap, set, whose).All() {
		e := operatorv1.External{Host: x.Host, Port: operatorv1.Port{Name: x.Name, Number: x.Port, Protocol: string(x.Protocol)}, ServiceEntry: x.Entry.ID, Closed: x.Closed}
		if x.EntryPort.TLS {
			e.Port.Protocol = "TLS"
		}
		if x.Rule != nil {
			e.Rule = x.Rule.ID
		}
		switch {
		case x.Mutual:
			e.TLS = string(registry.TLSIstioMutual)
		case x.TLS != nil:
			e.TLS = string(x.TLS.Mode)
		}
		out = append(out, e)
	}
	return out
}

// admitsIfExported reports whether the policies of a service admit a pod, whatever the service says of where it is to be known.
func admitsIfExported(snap *registry.Snapshot, set compile.Settings, s *registry.Service, p *registry.Pod) bool {
	exported := *s
	exported.ExportTo = nil
	_, admitted := compile.AudienceOf(snap, set, &exported).Admits(p.Namespace, p.ServiceAccount)
	return admitted
}

// To says who may call a service ("namespace/name").
func To(snap *registry.Snapshot, set compile.Settings, service string) (operatorv1.Audience, error) {
	s := snap.Service(service)
	if s == nil {
		return operatorv1.Audience{}, fmt.Errorf("there is no Service %s with an address of its own or of pods, or Pilot has not heard of it yet", service)
	}
	audience := compile.AudienceOf(snap, set, s)
	out := operatorv1.Audience{
		Service: s.ID, Ports: portsOf(s), Everyone: audience.Everyone, Open: audience.Open, Members: []operatorv1.Member{},
		ExportTo: s.ExportTo, Hidden: hidden(snap, set, s, audience),
	}
	for _, m := range slices.SortedFunc(maps.Keys(audience.Members), authz.Member.Compare) {
		out.Members = append(out.Members, operatorv1.Member{Namespace: m.Namespace, ServiceAccount: m.Account, By: audience.Members[m]})
	}
	return out, nil
}

// hidden counts the pods of an audience to which a Sidecar does not let the service be known.
func hidden(snap *registry.Snapshot, set compile.Settings, s *registry.Service, audience compile.Audience) []operatorv1.Hidden {
	from := map[string]int{}
	for p := range snap.Pods() {
		if _, admitted := audience.Admits(p.Namespace, p.ServiceAccount); !admitted || !p.Proxied {
			continue
		}
		if sidecar := compile.SidecarOf(snap, set, p.Namespace, p.Labels); !compile.Imports(sidecar, p.Namespace, s) {
			from[sidecar.ID]++
		}
	}
	var out []operatorv1.Hidden
	for _, id := range slices.Sorted(maps.Keys(from)) {
		out = append(out, operatorv1.Hidden{Sidecar: id, Pods: from[id]})
	}
	return out
}

func portsOf(s *registry.Service) []operatorv1.Port {
	out := make([]operatorv1.Port, 0, len(s.Ports))
	for _, p := range s.Ports {
		out = append(out, operatorv1.Port{Name: p.Name, Number: p.Number, Protocol: string(p.Protocol)})
	}
	return out
}
