package registry

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/hashicorp/go-memdb"
	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/proxyprotocol"
	"github.com/bulwark-mesh/bulwark/pkg/redirect"
)

// Pods are the pods that have not ended.
var Pods = &KindOf[Pod]{
	name:     "pod",
	resource: Resource{GroupVersionResource: core.SchemeGroupVersion.WithResource("pods"), Kind: "Pod"},
	source:   typed(trimPod, makePod),
	indexes:  []*memdb.IndexSchema{byNamespace, byEach("ip", "IPs"), byLabel},
}

// Pod is a pod that has not ended.
type Pod struct {
	ID              string
	Namespace, Name string
	UID             string
	IPs             []string // one of each family at most; none as long as it has no network
	Node            string
	ServiceAccount  string
	Labels          map[string]string
	Ports           []PodPort
	Proxied         bool // label security.istio.io/tlsMode says it has a proxy
	HostNetwork     bool // its address is its node's
	Delivery        delivery.Way
	NormalizePaths  bool             // annotation mesh.PathsAnnotation asks for it
	IdleTimeout     time.Duration    // of annotation mesh.IdleAnnotation; 0 if it says none
	ProxyProtocol   []uint32         // ports of annotation mesh.ProxyProtocolAnnotation, sorted
	Redirect        redirect.Options // what of its traffic its proxy has
}

// PodPort is a declared container port.
type PodPort struct {
	Name   string
	Number uint32
}

func trimPod(p *core.Pod) {
	spec := core.PodSpec{NodeName: p.Spec.NodeName, ServiceAccountName: p.Spec.ServiceAccountName, HostNetwork: p.Spec.HostNetwork}
	for _, c := range p.Spec.InitContainers {
		spec.InitContainers = append(spec.InitContainers, core.Container{Name: c.Name, Ports: c.Ports})
	}
	for _, c := range p.Spec.Containers {
		spec.Containers = append(spec.Containers, core.Container{Name: c.Name, Ports: c.Ports})
	}
	p.OwnerReferences = nil
	p.Spec = spec
	p.Status = core.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs}
}

func makePod(p *core.Pod) *Pod {
	if p.Status.Phase == core.PodSucceeded || p.Status.Phase == core.PodFailed {
		return nil
	}
	out := &Pod{
		ID: IDOf(p), Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), IPs: podIPs(&p.Status), Node: p.Spec.NodeName,
		ServiceAccount: p.Spec.ServiceAccountName, Labels: p.Labels, HostNetwork: p.Spec.HostNetwork,
		Proxied:        p.Labels[istiocompat.TLSModeLabel] == istiocompat.TLSModeMutual && !p.Spec.HostNetwork,
		NormalizePaths: p.Annotations[mesh.PathsAnnotation] == mesh.PathsNormalized,
	}
	if o, err := redirect.Parse(cmp.Or(p.Annotations[mesh.RedirectAnnotation], p.Annotations[mesh.RedirectedAnnotation])); err == nil {
		out.Redirect = o
	}
	if d, err := time.ParseDuration(p.Annotations[mesh.IdleAnnotation]); err == nil && d > 0 {
		out.IdleTimeout = d
	}
	if ports, err := proxyprotocol.Ports(p.Annotations[mesh.ProxyProtocolAnnotation]); err == nil {
		out.ProxyProtocol = ports
	}
	if p.Annotations[delivery.Label] == string(delivery.BySecret) {
		out.Delivery = delivery.BySecret
	}
	if out.ServiceAccount == "" {
		out.ServiceAccount = "default"
	}
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if c.Name == mesh.ProxyContainer {
			continue
		}
		for _, port := range c.Ports {
			if port.Protocol == core.ProtocolTCP || port.Protocol == "" {
				out.Ports = append(out.Ports, PodPort{port.Name, uint32(port.ContainerPort)})
			}
		}
	}
	return out
}

// podIPs are the addresses in a pod's status, of which the API server says the first twice.
func podIPs(s *core.PodStatus) (out []string) {
	for _, ip := range s.PodIPs {
		if ip.IP != "" {
			out = append(out, canonical(ip.IP))
		}
	}
	if out == nil && s.PodIP != "" {
		out = append(out, canonical(s.PodIP))
	}
	return out
}

// Serves reports whether the pod's proxy has the connections that come to a port; otherwise the application has them, in plaintext.
func (p *Pod) Serves(port uint32) bool { return p.Proxied && p.Redirect.Inbound(uint16(port)) }

// Pod returns a pod, or nil.
func (s *Snapshot) Pod(id string) *Pod { return Pods.one(s, id) }

// Pods returns every pod.
func (s *Snapshot) Pods() iter.Seq[*Pod] { return Pods.all(s, byID.Name) }

// PodsIn returns a namespace's pods.
func (s *Snapshot) PodsIn(ns string) iter.Seq[*Pod] { return Pods.all(s, byNamespace.Name, ns) }

// byLabel finds pods by their namespace and one of their labels.
var byLabel = &memdb.IndexSchema{Name: "label", AllowMissing: true, Indexer: labels{}}

// labels implements memdb.MultiIndexer.
type labels struct{}

func (labels) FromObject(o any) (any bool, keys [][]byte, err error) {
	p, ok := o.(*Pod)
	if !ok {
		return false, nil, fmt.Errorf("%T is no pod", o)
	}
	for key, value := range p.Labels {
		keys = append(keys, labelled(p.Namespace, key, value))
	}
	return len(keys) > 0, keys, nil
}

func (labels) FromArgs(args ...any) ([]byte, error) {
	texts := make([]string, 3)
	for i := range texts {
		text, ok := args[i].(string)
		if !ok {
			return nil, fmt.Errorf("label of %T", args[i])
		}
		texts[i] = text
	}
	return labelled(texts[0], texts[1], texts[2]), nil
}

func labelled(namespace, key, value string) []byte {
	return []byte(namespace + "\x00" + key + "\x00" + value + "\x00")
}

// PodsSelected returns the pods of a namespace whose labels contain the selector: every one if that is empty. It looks at those that have the
// selector's first label, in the order of the alphabet, and not at the whole namespace.
func (s *Snapshot) PodsSelected(ns string, selector map[string]string) iter.Seq[*Pod] {
	if len(selector) == 0 {
		return s.PodsIn(ns)
	}
	key := firstLabel(selector)
	return func(yield func(*Pod) bool) {
		for p := range Pods.all(s, byLabel.Name, ns, key, selector[key]) {
			if authz.Selects(selector, p.Labels) && !yield(p) {
				return
			}
		}
	}
}

// PodAt returns the pod that has an address for itself, or nil. Pods on the host's network share one.
func (s *Snapshot) PodAt(ip string) *Pod {
	var found *Pod
	for p := range Pods.all(s, "ip", ip) {
		if !p.HostNetwork {
			return p
		}
		found = p
	}
	return found
}
