package push

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// key names a resource. Its scope says which proxies share it, and holds everything but the snapshot that its content is
// made from: nothing at all, a class of workloads, one pod, or the way in which certificates come.
type key struct {
	typeURL string
	scope   scope
	name    string
}

type scope struct{ kind, value string }

const (
	classScope    = "class"
	podScope      = "pod"
	deliveryScope = "delivery"
)

// global is shared by every proxy.
var global = scope{}

// deliveries are those of the clients' certificates that clusters are made for; the first is what almost all have.
var deliveries = []registry.Delivery{registry.ByAgent, registry.BySecret}

func ofDelivery(d registry.Delivery) scope {
	if d == registry.ByAgent {
		return global
	}
	return scope{deliveryScope, string(d)}
}

// scopeOf finds whose resource a name is. Names of probe clusters mean something else in every pod.
func (c *client) scopeOf(typeURL, name string) scope {
	switch typeURL {
	case deltaxds.ExtensionConfigType:
		if slices.Contains(translate.RevocationNames(), name) {
			return global
		}
		return scope{classScope, c.class}
	case deltaxds.ListenerType:
		switch name {
		case translate.VirtualInbound:
			return scope{classScope, c.class}
		case translate.HealthListener:
			return scope{podScope, c.pod}
		}
	case deltaxds.ClusterType:
		switch {
		case strings.HasPrefix(name, "probe|"):
			return scope{podScope, c.pod}
		case strings.HasPrefix(name, "outbound|"):
			return ofDelivery(c.delivery)
		}
	}
	return global
}

// compute makes a resource from the snapshot, or returns nil where there is none. It is called with mu held.
func (s *Store) compute(k key) proto.Message {
	s.metrics.recomputes.Inc()
	switch k.typeURL {
	case deltaxds.ClusterType:
		return s.cluster(k)
	case deltaxds.EndpointType:
		if svc, port := s.servicePort(k.name); port != nil {
			return translate.Endpoints(k.name, compile.Endpoints(s.snap, s.settings, svc, port.Number))
		}
	case deltaxds.ListenerType:
		return s.listener(k)
	case deltaxds.ExtensionConfigType:
		if k.scope == global {
			return translate.Revocations(s.settings, slices.Collect(s.snap.Revocations()), k.name)
		}
		if w := s.workload(k.scope.value); w != nil {
			if config := translate.Authorization(w, k.name); config != nil {
				return config
			}
		}
	}
	return nil
}

func (s *Store) cluster(k key) proto.Message {
	if k.scope.kind == podScope {
		if p := s.pods[k.scope.value]; p != nil {
			for _, c := range translate.ProbeClusters(compile.ParseProbes(p.Probes), p.IP) {
				if c.GetName() == k.name {
					return c
				}
			}
		}
		return nil
	}
	switch k.name {
	case translate.PassthroughCluster:
		return translate.Passthrough()
	case translate.InboundCluster:
		return translate.Inbound()
	case translate.AdminCluster:
		return translate.Admin()
	}
	if _, port := s.servicePort(k.name); port != nil {
		return translate.OutboundCluster(port, registry.Delivery(k.scope.value))
	}
	return nil
}

func (s *Store) listener(k key) proto.Message {
	switch k.name {
	case translate.VirtualInbound:
		if w := s.workload(k.scope.value); w != nil {
			return translate.InboundListener(s.settings, w)
		}
		return nil
	case translate.HealthListener:
		if p := s.pods[k.scope.value]; p != nil {
			return translate.HealthListener15021(compile.ParseProbes(p.Probes))
		}
		return nil
	case translate.VirtualOutbound:
		return translate.OutboundListener()
	case translate.StatsListener:
		return translate.StatsListener15090()
	}
	i := strings.LastIndexByte(k.name, '_')
	if i < 0 {
		return nil
	}
	ip := k.name[:i]
	port, err := strconv.ParseUint(k.name[i+1:], 10, 16)
	if err != nil {
		return nil
	}
	if _, err := netip.ParseAddr(ip); err != nil {
		return nil
	}
	if f := compile.FrontendAt(s.snap, s.settings, ip, uint32(port)); f != nil {
		return translate.ServiceListener(f)
	}
	return nil
}

// servicePort finds the service port that a cluster's name means.
func (s *Store) servicePort(cluster string) (*registry.Service, *compile.ServicePort) {
	parts := strings.Split(cluster, "|")
	if len(parts) != 4 || parts[0] != "outbound" || parts[2] != "" {
		return nil, nil
	}
	number, err := strconv.ParseUint(parts[1], 10, 16)
	if err != nil {
		return nil, nil
	}
	host, ok := strings.CutSuffix(parts[3], ".svc."+mesh.ClusterDomain)
	name, namespace, found := strings.Cut(host, ".")
	if !ok || !found {
		return nil, nil
	}
	svc := s.snap.Service(namespace + "/" + name)
	if svc == nil {
		return nil, nil
	}
	return svc, portOf(compile.ServicePorts(s.snap, s.settings, svc), uint32(number))
}

func portOf(ports []compile.ServicePort, number uint32) *compile.ServicePort {
	for i := range ports {
		if ports[i].Number == number {
			return &ports[i]
		}
	}
	return nil
}

// workload compiles a class that a connected proxy has; the outcome is kept until something it depends on changes.
func (s *Store) workload(class string) *compile.Workload {
	c := s.classes[class]
	if c == nil {
		return nil
	}
	if c.compiled == nil {
		w := compile.CompileWorkload(s.snap, s.settings, c.class)
		c.compiled = &w
	}
	return c.compiled
}

// names lists what a wildcard subscription of a client covers.
func (s *Store) names(c *client, typeURL string) []string {
	out := slices.Clip(s.sharedNames(typeURL))
	switch typeURL {
	case deltaxds.ClusterType:
		if p := s.pods[c.pod]; p != nil {
			out = append(out, probeNames(p)...)
		}
	case deltaxds.ListenerType:
		out = append(out, translate.VirtualInbound, translate.HealthListener)
	}
	return out
}

// sharedNames are those that every client has. They are listed once for a snapshot.
func (s *Store) sharedNames(typeURL string) []string {
	if out, ok := s.everyone[typeURL]; ok {
		return out
	}
	var out []string
	switch typeURL {
	case deltaxds.ClusterType:
		out = s.sharedClusters()
	case deltaxds.ListenerType:
		out = s.sharedListeners()
	default: // of the clients' choice, so nothing is kept for it
		return nil
	}
	s.everyone[typeURL] = out
	return out
}

func (s *Store) sharedClusters() []string {
	out := []string{translate.PassthroughCluster, translate.InboundCluster, translate.AdminCluster}
	for svc := range s.snap.Services() {
		for _, p := range svc.Ports {
			out = append(out, istiocompat.OutboundCluster(p.Number, "", compile.Host(svc)))
		}
	}
	return out
}

func (s *Store) sharedListeners() []string {
	out := []string{translate.VirtualOutbound, translate.StatsListener}
	seen := map[string]bool{}
	for svc := range s.snap.Services() {
		for _, l := range compile.Listeners(s.snap, svc) {
			if !seen[l] {
				seen[l] = true
				out = append(out, l)
			}
		}
	}
	return out
}

func probeNames(p *registry.Pod) []string {
	var out []string
	for _, c := range translate.ProbeClusters(compile.ParseProbes(p.Probes), p.IP) {
		out = append(out, c.GetName())
	}
	return out
}
