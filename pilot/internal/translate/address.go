package translate

import (
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Every address of the pod's own, where redirected connections come to, too.
const (
	anyAddress     = "0.0.0.0"
	anyIPv6Address = "::"
)

// at has a listener take what comes to a port of the pod. Where there is IPv6, it has a socket for each family: one for both would show clients of IPv4 by
// addresses that are mapped into IPv6, and which the original destination of a connection is, the kernel says in another way for each family.
func at(l *listener.Listener, port uint32, ipv6 bool) *listener.Listener {
	l.Address = envoy.Address(anyAddress, port)
	if ipv6 {
		l.AdditionalAddresses = []*listener.AdditionalAddress{{Address: envoy.Address(anyIPv6Address, port)}}
	}
	return l
}

// fromMesh is where the proxy's connections to its own application come from, by which the redirection knows them. Envoy takes the address of the family in which
// it connects.
func fromMesh(ipv6 bool) *core.BindConfig {
	source := func(ip string) *core.SocketAddress { return envoy.Address(ip, 0).GetSocketAddress() }
	out := &core.BindConfig{SourceAddress: source(mesh.InboundSourceIPv4)}
	if ipv6 {
		out.ExtraSourceAddresses = []*core.ExtraSourceAddress{{Address: source(mesh.InboundSourceIPv6)}}
	}
	return out
}
