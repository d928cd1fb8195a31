package envoytest

import (
	"net"
	"testing"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
)

// FreePorts returns ports of 127.0.0.1 that nothing listens on.
func FreePorts(t testing.TB, n int) []uint32 {
	t.Helper()
	var out []uint32
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // all at once, so that no port comes twice
		out = append(out, uint32(l.Addr().(*net.TCPAddr).Port))
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
