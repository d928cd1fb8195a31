package registry

import (
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// istioNetworking is the group of the kinds that say who is called, and how.
var istioNetworking = schema.GroupVersion{Group: "networking.istio.io", Version: "v1"}

// notOutside says why a name is not that of something outside of the cluster; it returns nothing if it is. Names of the cluster's own are not anybody's to give away.
func notOutside(host string) string {
	name := strings.TrimPrefix(host, "*.")
	switch {
	case len(validation.IsDNS1123Subdomain(name)) > 0:
		return "is no DNS name, which is in lower case and may have * for its first part"
	case isAddress(host):
		return "is an address; those stand in spec.addresses"
	case OfCluster(name):
		return "is a name of the cluster's own"
	case !strings.Contains(host, "."):
		return "is a short name, which is a Service's; write the whole name"
	}
	return ""
}

// OfCluster reports whether a name is the cluster's own, or may be found there: one below its domain, or above it, or one that DNS completes in a pod.
func OfCluster(name string) bool {
	domain := "." + mesh.ClusterDomain
	return strings.HasSuffix("."+name, domain) || strings.HasSuffix(domain, "."+name) || strings.HasSuffix(name, ".svc") || strings.HasSuffix("."+name, ".localhost")
}

func isAddress(text string) bool {
	_, err := netip.ParseAddr(text)
	return err == nil
}

// notServer says why an address is not that of a server somewhere else; it returns nothing if it is. What a proxy reaches at other addresses is the pod's or the
// node's own: its admin port, a cloud's metadata.
func notServer(text string) string {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return "is no IP address"
	}
	return notServers(netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
}

// notServers says why a network is not one of servers somewhere else; it returns nothing if it is.
func notServers(network netip.Prefix) string {
	for _, own := range notServed {
		switch {
		case !own.Overlaps(network):
		case network.IsSingleIP():
			return "is no address of another machine"
		default:
			return "has addresses that are those of no other machine: of " + own.String() + "; write narrower networks"
		}
	}
	return ""
}

// notServed are the addresses that are those of no other machine: unspecified, loopback, link-local, multicast, broadcast (RFC 6890, RFC 1112, RFC 4291).
var notServed = prefixes("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "::/128", "::1/128", "fe80::/10", "ff00::/8")

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}
