package enforcement

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulwark-mesh/bulwark/pilot/internal/push"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	pilotv1 "github.com/bulwark-mesh/bulwark/pkg/api/pilot/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

const (
	answerWithin = 2 * time.Second
	// MaxNames bounds the proxies that lag that are named for a policy.
	MaxNames = 10000
)

// Dialed are the other Pilots over mutual TLS. Connections are kept.
type Dialed struct {
	config *tls.Config
	mu     sync.Mutex
	to     map[string]*grpc.ClientConn // by address
}

// Dial returns a way to other Pilots; config has to accept nobody else. Close it.
func Dial(config *tls.Config) *Dialed {
	return &Dialed{config: config, to: map[string]*grpc.ClientConn{}}
}

// Close ends all connections.
func (d *Dialed) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, conn := range d.to {
		_ = conn.Close()
	}
	clear(d.to)
}

// maxConnections bounds what is kept of Pilots that have gone.
const maxConnections = 16

func (d *Dialed) connection(address string) (*grpc.ClientConn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if conn := d.to[address]; conn != nil {
		return conn, nil
	}
	for old, conn := range d.to {
		if len(d.to) < maxConnections {
			break
		}
		_ = conn.Close()
		delete(d.to, old)
	}
	conn, err := grpc.NewClient("passthrough:///"+address, mtls.DialOptions(d.config)...)
	if err != nil {
		return nil, err
	}
	d.to[address] = conn
	return conn, nil
}

// Count implements Peers.
func (d *Dialed) Count(ctx context.Context, pod *registry.Pod, policies []registry.PolicyRef, names int) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	conn, err := d.connection(net.JoinHostPort(pod.IPs[0], strconv.Itoa(mesh.XDSPort)))
	if err != nil {
		return Answer{}, fmt.Errorf("asking Pilot %s: %w", pod.Name, err)
	}
	request := &pilotv1.CountRequest{Names: uint32(names)}
	for _, p := range policies {
		request.Policies = append(request.Policies, &pilotv1.Policy{Kind: p.Kind.Resource().Kind, Id: p.ID})
	}
	got, err := pilotv1.NewEnforcementClient(conn).Count(ctx, request)
	if err != nil {
		return Answer{}, fmt.Errorf("asking Pilot %s: %w", pod.Name, err)
	}
	out := Answer{Nodes: got.GetNodes()}
	for _, p := range got.GetPolicies() {
		e := push.Enforcement{Generation: p.GetGeneration(), Proxies: int(p.GetProxies()), Taken: int(p.GetTaken())}
		for _, l := range p.GetLagging() {
			e.Lagging = append(e.Lagging, push.Laggard{Proxy: l.GetProxy(), Reason: l.GetReason()})
		}
		out.Policies = append(out.Policies, e)
	}
	return out, nil
}

// Server answers the other Pilots.
type Server struct {
	pilotv1.UnimplementedEnforcementServer
	Store  Store
	Caller func(context.Context) (spiffe.ID, error) // who calls
	Allow  []spiffe.ID                              // who may
}

// Count implements EnforcementServer.
func (s *Server) Count(ctx context.Context, r *pilotv1.CountRequest) (*pilotv1.CountResponse, error) {
	id, err := s.Caller(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if !slices.Contains(s.Allow, id) {
		return nil, status.Errorf(codes.PermissionDenied, "%s is no Pilot", id)
	}
	refs := make([]registry.PolicyRef, 0, len(r.GetPolicies()))
	for _, p := range r.GetPolicies() {
		kind := registry.KindOfObject(p.GetKind())
		if kind == nil || !kind.IsCounted() {
			return nil, status.Errorf(codes.InvalidArgument, "%q is no kind of policies", p.GetKind())
		}
		refs = append(refs, registry.PolicyRef{Kind: kind, ID: p.GetId()})
	}
	out := &pilotv1.CountResponse{Nodes: s.Store.Nodes()}
	for _, e := range s.Store.Enforcement(refs, min(MaxNames, int(r.GetNames()))) {
		p := &pilotv1.Progress{Generation: e.Generation, Proxies: uint32(e.Proxies), Taken: uint32(e.Taken)}
		for _, l := range e.Lagging {
			p.Lagging = append(p.Lagging, &pilotv1.Laggard{Proxy: l.Proxy, Reason: l.Reason})
		}
		out.Policies = append(out.Policies, p)
	}
	return out, nil
}
