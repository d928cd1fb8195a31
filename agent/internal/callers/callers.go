// Package callers bounds what the processes of one pod may take of the agent that serves its sockets, so that no pod can use
// up the memory of its node's agent, and nobody in a pod can take what its proxy needs.
package callers

import (
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
)

// How many connections the processes of one pod may have. Envoy has one for each of its workers and one for its main
// thread, a program that speaks the Workload API up to three. The proxy's are counted apart, so that nobody else in the pod
// can take them away, whatever volumes it has.
const (
	ofProxy  = 32
	ofOthers = 32
	ofOne    = 16 // user of the others
)

// Callers are the processes of one pod that are connected to its sockets. Who is a caller is said by the kernel
// (SO_PEERCRED, unix(7)). It is safe for concurrent use; Close it with the pod.
type Callers struct {
	turn *turn
	log  *slog.Logger
	once sync.Once

	streams [2]atomic.Int32 // of configuration; the proxy's are the second
	mu      sync.Mutex
	open    map[*caller]bool
	gone    bool // the pod
}

// New returns the callers of a pod, of whom there are none yet.
func New(log *slog.Logger) *Callers {
	return &Callers{log: log, open: map[*caller]bool{}, turn: newTurn()}
}

// limits of a pod's server; what one process may send of it is in frames.
var limits = mtls.Limits{MaxRecvMsgSize: large, MaxConcurrentStreams: 32, MaxHeaderListSize: 8 << 10}

// ServerOptions are those of the gRPC server of the pod's sockets.
func (c *Callers) ServerOptions() []grpc.ServerOption {
	return append(mtls.BoundedOptions(limits), grpc.ForceServerCodecV2(newCodec(c.turn)), grpc.StreamInterceptor(c.limitStreams))
}

// Listen returns the listener of one socket, which lets in no more callers than are allowed. Everyone says whether the socket
// is open to every user, and not to the proxy's alone.
func (c *Callers) Listen(l *net.UnixListener, everyone bool) net.Listener {
	return door{l, c, everyone}
}

type door struct {
	*net.UnixListener
	callers  *Callers
	everyone bool
}

// Accept implements net.Listener. Whoever is too many is turned away at once: left waiting, he would stand before others.
func (d door) Accept() (net.Conn, error) {
	for {
		c, err := d.AcceptUnix()
		if err != nil {
			return nil, err
		}
		in, err := d.callers.admit(c, d.everyone)
		if err == nil {
			return in, nil
		}
		d.callers.complain(err)
		_ = c.Close() // there is nothing to do about an error
	}
}

func (c *Callers) admit(conn *net.UnixConn, everyone bool) (*caller, error) {
	uid, err := userOf(conn)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return nil, net.ErrClosed
	}
	same, others := 0, 0
	for other := range c.open {
		if other.uid == uid {
			same++
		}
		if other.uid != mesh.ProxyUID {
			others++
		}
	}
	in := &caller{Conn: conn, uid: uid, proxy: uid == mesh.ProxyUID || !everyone, callers: c, gone: make(chan struct{})}
	most, size := ofOne, small
	if in.proxy {
		most, size = ofProxy, large
	}
	if same >= most || uid != mesh.ProxyUID && others >= ofOthers {
		return nil, fmt.Errorf("user %d has %d connections already, all but the proxy %d", uid, same, others)
	}
	in.frames = newFrames(size)
	c.open[in] = true
	return in, nil
}

func userOf(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("who calls: %w", err)
	}
	var cred *unix.Ucred
	var bad error
	if err := raw.Control(func(fd uintptr) { cred, bad = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, fmt.Errorf("who calls: %w", err)
	}
	if bad != nil {
		return 0, fmt.Errorf("who calls: %w", bad)
	}
	return cred.Uid, nil
}

// Close cuts everybody off. gRPC's server would wait for those who have connected and say nothing.
func (c *Callers) Close() {
	c.mu.Lock()
	c.gone = true
	open := slices.Collect(maps.Keys(c.open))
	c.mu.Unlock()
	for _, o := range open {
		_ = o.Close() // there is nothing to do about an error
	}
}

// complain logs the first of a pod's connections that is refused or cut off.
func (c *Callers) complain(err error) {
	c.once.Do(func() {
		c.log.Warn("a process of a pod wants more of the agent than is allowed; its connections are refused or closed", "error", err)
	})
}

// caller is one connection.
type caller struct {
	net.Conn
	uid     uint32
	proxy   bool // or one who could come in by the proxy's own socket
	callers *Callers
	frames  *frames // of the goroutine that reads
	shut    sync.Once
	gone    chan struct{} // closed with the connection
}

// Read implements net.Conn.
func (c *caller) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if bad := c.frames.read(b[:n]); bad != nil {
		c.callers.complain(bad)
		return 0, bad
	}
	if c.frames.begun > 0 {
		if bad := c.callers.turn.begin(c, c.frames.begun); bad != nil {
			c.callers.complain(bad)
			return 0, bad
		}
		c.frames.begun = 0
	}
	return n, err
}

// Close implements net.Conn.
func (c *caller) Close() error {
	c.shut.Do(func() {
		close(c.gone)
		c.callers.turn.leave(c)
		c.callers.mu.Lock()
		defer c.callers.mu.Unlock()
		delete(c.callers.open, c)
	})
	return c.Conn.Close()
}

// RemoteAddr implements net.Conn. By it, a call knows its caller.
func (c *caller) RemoteAddr() net.Addr { return address{c} }

type address struct{ *caller }

// Network implements net.Addr.
func (address) Network() string { return "unix" }

// String implements net.Addr.
func (a address) String() string { return fmt.Sprintf("uid %d", a.uid) }

// ofConfiguration is how many streams with a proxy's configuration there may be, of its own and, again, of others. One
// that is not read takes as much memory as the configuration.
const ofConfiguration = 3

// limitStreams is a grpc.StreamServerInterceptor.
func (c *Callers) limitStreams(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if info.FullMethod == discovery.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName {
		p, _ := peer.FromContext(s.Context())
		a, ok := p.Addr.(address)
		if !ok {
			return status.Error(codes.Internal, "a call without a caller")
		}
		streams := &c.streams[0]
		if a.proxy {
			streams = &c.streams[1]
		}
		defer streams.Add(-1)
		if streams.Add(1) > ofConfiguration {
			return status.Errorf(codes.ResourceExhausted, "the pod has %d streams of configuration already", ofConfiguration)
		}
	}
	return handler(srv, s)
}
