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
	Address string
	Ready   bool // or it is terminating and still serves, and nothing better is there
}

func makeSlice(s *discovery.EndpointSlice) *Slice {
	service := s.Labels[discovery.LabelServiceName]
	if service == "" || s.AddressType == discovery.AddressTypeFQDN {
		return nil
	}
	out := &Slice{ID: IDOf(s), Namespace: s.Namespace, Name: s.Name, ServiceID: s.Namespace + "/" + service}
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
		ready := e.Conditions.Ready == nil || *e.Conditions.Ready
		for _, a := range e.Addresses {
			out.Endpoints = append(out.Endpoints, Endpoint{a, ready})
			out.Addresses = append(out.Addresses, a)
		}
	}
	slices.SortFunc(out.Endpoints, func(a, b Endpoint) int { return cmp.Compare(a.Address, b.Address) })
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
