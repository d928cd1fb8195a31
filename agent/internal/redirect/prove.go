package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/redirect"
)

// ProveSettings of `agent prove`: it has none.
type ProveSettings struct{}

// patience is how long one connection may take: without redirection it goes to an address where nobody answers.
const patience = 2 * time.Second

// Prove returns nil if this network namespace's traffic is redirected to the proxy's port, where it listens in the proxy's
// place. It needs no privilege, but another user than the proxy's, whose traffic is not redirected.
//
// The rules of both families and directions come in one transaction, so a family that has no route proves nothing and is no
// failure, as long as the other one does.
func Prove(ctx context.Context, _ ProveSettings) error {
	proven := false
	for _, to := range redirect.Proofs {
		switch err := arrives(ctx, to); {
		case err == nil:
			proven = true
		case noRoute(err):
		default:
			return fmt.Errorf("%w (%w)", errNotRedirected, err)
		}
	}
	if !proven {
		return fmt.Errorf("%w (it has no route by which that could be found out)", errNotRedirected)
	}
	return nil
}

var errNotRedirected = errors.New("the node's CNI plugin bulwark-cni has not redirected this pod's traffic to its proxy, so the pod does not start: " +
	"delete the pod, so that its network is made again; if that does not help, look at the node's pod of " +
	"`kubectl -n " + mesh.Namespace + " get daemonset bulwark-cni` (docs/cni.md)")

func noRoute(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)
}

// arrives connects to an address where nobody is, and returns nil if the connection comes to the proxy's port.
func arrives(ctx context.Context, to netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	loopback := netip.MustParseAddr("127.0.0.1")
	if to.Is6() {
		loopback = netip.IPv6Loopback()
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", netip.AddrPortFrom(loopback, mesh.OutboundPort).String())
	if err != nil {
		return fmt.Errorf("listening in the proxy's place: %w", err)
	}
	defer l.Close()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", netip.AddrPortFrom(to, mesh.OutboundPort).String())
	if err != nil {
		return fmt.Errorf("connecting to %s, which only the proxy's port can answer: %w", to, err)
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := l.(*net.TCPListener).SetDeadline(deadline); err != nil {
			return fmt.Errorf("waiting for a connection to %s: %w", to, err)
		}
	}
	got, err := l.Accept()
	if err != nil {
		return fmt.Errorf("a connection to %s was answered by somebody else: %w", to, err)
	}
	defer got.Close()
	if got.RemoteAddr().String() != c.LocalAddr().String() {
		return fmt.Errorf("a connection to %s was answered by somebody else", to)
	}
	return nil
}
