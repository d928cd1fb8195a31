package registry

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// Services are Kubernetes' Services, but for those that are only another name.
var Services = &KindOf[Service]{
	name:     "service",
	resource: Resource{GroupVersionResource: core.SchemeGroupVersion.WithResource("services"), Kind: "Service"},
	source:   typed(trimService, makeService),
	indexes:  []*memdb.IndexSchema{byNamespace, bySelector, byEach("ip", "ClusterIPs")},
	advise:   adviseService,
}

// Service is a Kubernetes Service.
type Service struct {
	ID              string // namespace/name
	Namespace, Name string
	ClusterIPs      []string // one of each family at most
	Headless        bool
	Selector        map[string]string
	Ports           []ServicePort
	Bypassing       []BypassingPort // which no proxy takes
	Local           bool            // clients have only endpoints of their own node (internalTrafficPolicy)
	Affinity        time.Duration   // a client stays with its endpoint, until it has been silent for as long (sessionAffinity); zero: it does not
	ExportTo        []string        // namespaces to which it is to be known, or ".", "*", "~"; nil: nothing is said
	Created         time.Time
}

// Families are those in which it has endpoints for its clients, which a client chooses by the address that it calls. Behind a headless Service clients choose the
// endpoint itself, and nothing of it depends on the family.
func (s *Service) Families() (out []Family) {
	for _, f := range []Family{IPv4, IPv6} {
		if slices.ContainsFunc(s.ClusterIPs, func(ip string) bool { return FamilyOf(ip) == f }) {
			out = append(out, f)
		}
	}
	if out == nil {
		return []Family{IPv4}
	}
	return out
}

// HasPort reports whether it has a port of the number.
func (s *Service) HasPort(number uint32) bool {
	return slices.ContainsFunc(s.Ports, func(p ServicePort) bool { return p.Number == number })
}

// ServicePort is a TCP port of a Service.
type ServicePort struct {
	Name        string
	Number      uint32
	Target      uint32 // number of the workload's port, or zero
	TargetName  string // name of the workload's port, or empty
	Protocol    protocol.Protocol
	ServerFirst bool
}

// BypassingPort is a port of another protocol than TCP.
type BypassingPort struct {
	Number   uint32
	Protocol string
}

func trimService(s *core.Service) {
	exportTo, set := s.Annotations[istiocompat.ExportToAnnotation]
	s.Annotations = nil
	if set {
		s.Annotations = map[string]string{istiocompat.ExportToAnnotation: exportTo}
	}
}

// exportTo reads the annotation as Istio does: names stand between commas, and an empty text is as good as none.
func exportTo(annotation string) []string {
	if annotation == "" {
		return nil
	}
	out := strings.Split(annotation, ",")
	for i := range out {
		out[i] = strings.TrimSpace(out[i])
	}
	return out
}

func makeService(s *core.Service) *Service {
	if s.Spec.Type == core.ServiceTypeExternalName {
		return nil
	}
	out := &Service{ID: IDOf(s), Namespace: s.Namespace, Name: s.Name, Selector: s.Spec.Selector, Created: s.CreationTimestamp.UTC(),
		Affinity: affinity(&s.Spec), ExportTo: exportTo(s.Annotations[istiocompat.ExportToAnnotation])}
	out.Local = s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == core.ServiceInternalTrafficPolicyLocal
	for _, ip := range s.Spec.ClusterIPs {
		if ip == core.ClusterIPNone {
			out.Headless = true
		} else {
			out.ClusterIPs = append(out.ClusterIPs, canonical(ip))
		}
	}
	for _, p := range s.Spec.Ports {
		if p.Protocol != core.ProtocolTCP && p.Protocol != "" {
			out.Bypassing = append(out.Bypassing, BypassingPort{uint32(p.Port), string(p.Protocol)})
			continue
		}
		number := uint32(p.Port)
		port := ServicePort{Name: p.Name, Number: number, Target: number}
		if p.TargetPort.Type == intstr.String {
			port.Target, port.TargetName = 0, p.TargetPort.StrVal
		} else if p.TargetPort.IntVal != 0 {
			port.Target = uint32(p.TargetPort.IntVal)
		}
		appProtocol := ""
		if p.AppProtocol != nil {
			appProtocol = *p.AppProtocol
		}
		port.Protocol, port.ServerFirst = protocol.Of(appProtocol, p.Name, number), protocol.ServerFirst(appProtocol, p.Name, number)
		out.Ports = append(out.Ports, port)
	}
	return out
}

// affinity is how long a client's choice holds. The API server always says it.
func affinity(s *core.ServiceSpec) time.Duration {
	if s.SessionAffinity != core.ServiceAffinityClientIP {
		return 0
	}
	seconds := core.DefaultClientIPServiceAffinitySeconds
	if c := s.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return time.Duration(seconds) * time.Second
}

// adviseService names what of a Service is not as its author may think. (TestEveryFieldOfAServiceIsAccountedFor has all fields.)
func adviseService(s *Service) (out []string) {
	for _, p := range s.Bypassing {
		out = append(out, fmt.Sprintf("port %d is %s, which proxies do not take: between pods of the mesh it works as without them, "+
			"and is neither encrypted nor subject to policies", p.Number, p.Protocol))
	}
	if s.Affinity != 0 && s.Affinity != defaultAffinity && !s.Headless {
		out = append(out, fmt.Sprintf("spec.sessionAffinityConfig.clientIP.timeoutSeconds is not counted for clients in the mesh: "+
			"each stays with its endpoint while that is ready, also after %s of silence", s.Affinity))
	}
	return out
}

// defaultAffinity is what the API server writes where nothing is said.
const defaultAffinity = time.Duration(core.DefaultClientIPServiceAffinitySeconds) * time.Second

// Service returns a service, or nil.
func (s *Snapshot) Service(id string) *Service { return Services.one(s, id) }

// Services returns every service.
func (s *Snapshot) Services() iter.Seq[*Service] { return Services.all(s, byID.Name) }

// ServicesFor returns the services of a namespace whose selectors find pods with the labels, in the order of their names. A service without
// a selector finds none.
func (s *Snapshot) ServicesFor(ns string, labels map[string]string) []*Service {
	return slices.DeleteFunc(selectingPods(s, Services, ns, labels), func(s *Service) bool { return len(s.Selector) == 0 })
}

func (s *Service) selects() (id, namespace string, selector map[string]string) {
	return s.ID, s.Namespace, s.Selector
}

// ServicesIn returns a namespace's services.
func (s *Snapshot) ServicesIn(ns string) iter.Seq[*Service] {
	return Services.all(s, byNamespace.Name, ns)
}

// ServicesAt returns the services with a cluster IP.
func (s *Snapshot) ServicesAt(ip string) iter.Seq[*Service] { return Services.all(s, "ip", ip) }
