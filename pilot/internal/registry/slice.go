package registry

import (
	"cmp"
	"iter"
	"slices"

	"github.com/hashicorp/go-memdb"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
)

// Slices are the EndpointSlices of Services, but for those that hold names instead of addresses.
var Slices = &KindOf[Slice]{
	name:     "slice",
	resource: Resource{GroupVersionResource: discovery.SchemeGroupVersion.WithResource("endpointslices"), Kind: "EndpointSlice"},
	source:   typed(func(s *discovery.EndpointSlice) { s.Annotations, s.OwnerReferences = nil, nil }, makeSlice),
	indexes:  []*memdb.IndexSchema{by("service", "ServiceID"), byEach("address", "Addresses")},
}

// Slice is an EndpointSlice.
type Slice struct {
	ID              string
	Namespace, Name string
	ServiceID       string // namespace/name
	Family          Family // of its addresses
	Ports           []SlicePort
	Endpoints       []Endpoint
	Addresses       []string // all, for the index
}

// SlicePort is a port of a slice; Name is the Service port's.
type SlicePort struct {
	Name   string
	Number uint32
}

// Endpoint is one address of a slice.
type Endpoint struct {
	Address  string
	Ready    bool
	Leaving  bool     // it is terminating and still serves, for as long as nothing is ready
	Node     string   // where it is, or empty
	ForNodes []string // whose clients it is meant for; none: nothing is said
	ForZones []string
}

func makeSlice(s *discovery.EndpointSlice) *Slice {
	service := s.Labels[discovery.LabelServiceName]
	if service == "" || s.AddressType == discovery.AddressTypeFQDN {
		return nil
	}
	out := &Slice{ID: IDOf(s), Namespace: s.Namespace, Name: s.Name, ServiceID: s.Namespace + "/" + service}
	if s.AddressType == discovery.AddressTypeIPv6 {
		out.Family = IPv6
	}
	for _, p := range s.Ports {
		if p.Port == nil || p.Protocol != nil && *p.Protocol != core.ProtocolTCP {
			continue
		}
		port := SlicePort{Number: uint32(*p.Port)}
		if p.Name != nil {
			port.Name = *p.Name
		}
		out.Ports = append(out.Ports, port)
	}
	for _, e := range s.Endpoints {
		made := makeEndpoint(&e)
		for _, a := range e.Addresses {
			made.Address = canonical(a)
			out.Endpoints = append(out.Endpoints, made)
			out.Addresses = append(out.Addresses, made.Address)
		}
	}
	slices.SortFunc(out.Endpoints, func(a, b Endpoint) int { return cmp.Compare(a.Address, b.Address) })
	return out
}

// makeEndpoint takes what is not said of an endpoint as kube-proxy does.
func makeEndpoint(e *discovery.Endpoint) Endpoint {
	var out Endpoint
	out.Ready = e.Conditions.Ready == nil || *e.Conditions.Ready
	serving := e.Conditions.Serving == nil || *e.Conditions.Serving
	out.Leaving = !out.Ready && serving && e.Conditions.Terminating != nil && *e.Conditions.Terminating
	if e.NodeName != nil {
		out.Node = *e.NodeName
	}
	if e.Hints != nil {
		for _, n := range e.Hints.ForNodes {
			out.ForNodes = append(out.ForNodes, n.Name)
		}
		for _, z := range e.Hints.ForZones {
			out.ForZones = append(out.ForZones, z.Name)
		}
	}
	return out
}

// SlicesOf returns the endpoint slices of a service.
func (s *Snapshot) SlicesOf(serviceID string) iter.Seq[*Slice] {
	return Slices.all(s, "service", serviceID)
}

// SlicesAt returns the endpoint slices that hold an address.
func (s *Snapshot) SlicesAt(address string) iter.Seq[*Slice] {
	return Slices.all(s, "address", address)
}
