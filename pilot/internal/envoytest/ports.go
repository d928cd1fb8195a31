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
	for tries := 0; len(out) < n; tries++ {
		port := lowestPort + rand.Uint32N(highestPort-lowestPort)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil && tries > 100*n {
			t.Fatalf("no free port: %v", err)
		} else if err != nil {
			continue // somebody has it
		}
		defer l.Close() // all at once, so that no port comes twice
		out = append(out, port)
	}
	return out
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
