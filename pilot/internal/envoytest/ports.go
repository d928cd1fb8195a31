package envoytest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
)

// Ports from the first on and before the last are none that kernels give to outgoing connections (ip_local_port_range, from 32768 on by default), of which a busy machine has
// so many that one of them would be taken before an Envoy has it.
const lowestPort, highestPort = 17000, 32000

// FreePorts returns ports of 127.0.0.1 that nothing listens on.
func FreePorts(t testing.TB, n int) []uint32 {
	t.Helper()
	var out []uint32
	for range n {
		l := Listen(t)
		defer l.Close() // all at once, so that no port comes twice
		out = append(out, uint32(l.Addr().(*net.TCPAddr).Port))
	}
	return out
}

// Listen takes a port of 127.0.0.1 for an application whose proxy takes the same of another address.
func Listen(t testing.TB) net.Listener {
	t.Helper()
	for tries := 0; ; tries++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", lowestPort+rand.Uint32N(highestPort-lowestPort)))
		if err == nil {
			return l
		}
		if tries > 100 {
			t.Fatalf("no free port: %v", err)
		}
	}
}

// OwnSocket gives what refuses connections, and what leads to it, a socket of one Envoy alone, where pods have networks of their own.
func OwnSocket(resource proto.Message, of string) {
	move := func(a *core.Address) {
		if p := a.GetPipe(); p != nil && p.GetPath() == translate.RefusalSocket {
			p.Path += of
		}
	}
	switch r := resource.(type) {
	case *listener.Listener:
		move(r.GetAddress())
	case *cluster.Cluster:
		for _, l := range r.GetLoadAssignment().GetEndpoints() {
			for _, e := range l.GetLbEndpoints() {
				move(e.GetEndpoint().GetAddress())
			}
		}
	}
}
