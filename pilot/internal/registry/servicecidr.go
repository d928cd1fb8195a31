package registry

import (
	"iter"
	"net/netip"

	networking "k8s.io/api/networking/v1"
)

// ServiceCIDRs are the ranges from which the API server gives Services their addresses. Kubernetes has them since 1.33, the oldest
// version that Bulwark runs on, and one for the range of its flags is always there.
var ServiceCIDRs = &KindOf[ServiceCIDR]{
	name:     "servicecidr",
	resource: Resource{GroupVersionResource: networking.SchemeGroupVersion.WithResource("servicecidrs"), Kind: "ServiceCIDR"},
	source: typed(func(c *networking.ServiceCIDR) { c.Annotations, c.Labels = nil, nil },
		func(c *networking.ServiceCIDR) *ServiceCIDR {
			out := &ServiceCIDR{ID: c.Name}
			for _, text := range c.Spec.CIDRs {
				if p, err := netip.ParsePrefix(text); err == nil { // the API server takes no other
					out.Prefixes = append(out.Prefixes, p.Masked())
				}
			}
			return out
		}),
}

// ServiceCIDR is a range of addresses of Services, in at most one prefix of each IP version. While it is being deleted it counts:
// Kubernetes lets it go only when no Service has an address of it.
type ServiceCIDR struct {
	ID       string
	Prefixes []netip.Prefix
}

// ServiceCIDRs returns every range of addresses of Services.
func (s *Snapshot) ServiceCIDRs() iter.Seq[*ServiceCIDR] { return ServiceCIDRs.all(s, byID.Name) }
