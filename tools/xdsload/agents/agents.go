// Package agents is the agents of many nodes, as far as configuration goes: each has one stream to Pilot under an agent's identity, and serves
// the Envoy of each of its pods on a socket from what it holds. How that is done is nodexds and deltaxds, as in the agent itself; what the
// agent has on a socket beside it (secrets, telemetry, the bounds of package callers) is not here, but for a pod that has a real Envoy: it is
// given a certificate.
//
// They run in a process of their own (Process), so that what they cost can be read exactly.
package agents

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"k8s.io/utils/clock"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/closer"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/ca"
)

// Agents serve their pods' Envoys from when they are made, and ask Pilot from Follow on, until Close.
type Agents struct {
	agents []*agent
	count  counters
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup
}

// agent is that of one node.
type agent struct {
	name    string
	node    *nodexds.Node
	pilot   *grpc.ClientConn
	servers []*grpc.Server // one a pod
}

// New makes agents, with their sockets.
func New(s Settings) (*Agents, error) {
	a := &Agents{}
	a.ctx, a.stop = context.WithCancel(context.Background())
	for _, n := range s.Nodes {
		if err := a.add(s, n); err != nil {
			a.Close()
			return nil, fmt.Errorf("agent of node %s: %w", n.Name, err)
		}
	}
	return a, nil
}

func (a *Agents) add(s Settings, n Node) error {
	conn, err := dial(s, n, grpc.WithStatsHandler(&a.count))
	if err != nil {
		return err
	}
	made := &agent{name: n.Name, node: nodexds.New(clock.RealClock{}, closer.Version), pilot: conn}
	a.agents = append(a.agents, made)
	for _, p := range n.Pods {
		srv := grpc.NewServer(append(mtls.BoundedOptions(mtls.Limits{}), grpc.ForceServerCodecV2(deltaxds.Codec()))...)
		discovery.RegisterAggregatedDiscoveryServiceServer(srv, &pod{node: made.node, uid: p.UID})
		if p.Chain != nil {
			own, err := ca.NewSecrets(p.Chain, p.Key, s.Roots)
			if err != nil {
				return fmt.Errorf("secrets of pod %s: %w", p.Name, err)
			}
			secret.RegisterSecretDiscoveryServiceServer(srv, secrets{source: own})
		}
		l, err := net.Listen("unix", p.Socket)
		if err != nil {
			return fmt.Errorf("socket of pod %s: %w", p.Name, err)
		}
		made.servers = append(made.servers, srv)
		made.node.Add(p.UID, p.Name, "")
		a.wg.Go(func() { _ = srv.Serve(l) }) // ends with Close
	}
	return nil
}

// dial connects to Pilot as the agent of a node.
func dial(s Settings, n Node, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	own, err := x509svid.Parse(n.Chain, n.Key)
	if err != nil {
		return nil, fmt.Errorf("its SVID: %w", err)
	}
	domain, err := spiffeid.TrustDomainFromString(mesh.DefaultTrustDomain)
	if err != nil {
		return nil, err
	}
	bundle, err := x509bundle.Parse(domain, s.Roots)
	if err != nil {
		return nil, fmt.Errorf("its trust bundle: %w", err)
	}
	pilot, err := spiffe.New(mesh.DefaultTrustDomain, mesh.Namespace, mesh.PilotAccount)
	if err != nil {
		return nil, err
	}
	options = append(options, mtls.DialOptions(mtls.Client(own, bundle, mtls.OneOf(pilot)))...)
	return grpc.NewClient(s.Pilot, append(options, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(nodexds.MaxMessage)))...)
}

// Follow has each agent keep a stream to Pilot from now on.
func (a *Agents) Follow() {
	for _, agent := range a.agents {
		client := nodev1.NewNodeConfigurationClient(agent.pilot)
		a.wg.Go(func() {
			agent.node.Run(a.ctx, func(ctx context.Context) (nodexds.RPC, error) {
				rpc, err := client.Follow(ctx, grpc.WaitForReady(true))
				if err != nil {
					return nil, err
				}
				return &heard{RPC: rpc, agents: &a.count}, nil
			}, slog.With("node", agent.name))
		})
	}
}

// Count is what there has been with Pilot so far.
func (a *Agents) Count() Count { return a.count.now() }

// Close ends all streams and sockets.
func (a *Agents) Close() error {
	a.stop()
	var errs []error
	for _, agent := range a.agents {
		for _, s := range agent.servers {
			s.Stop()
		}
		errs = append(errs, agent.pilot.Close())
	}
	a.wg.Wait()
	return errors.Join(errs...)
}

// pod serves the Envoy of one.
type pod struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	node *nodexds.Node
	uid  string
}

type envoyStream = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer

// DeltaAggregatedResources implements AggregatedDiscoveryService, as the agent's relay does.
func (p *pod) DeltaAggregatedResources(rpc envoyStream) error {
	first, err := rpc.Recv()
	if err != nil {
		return err
	}
	proxy := p.node.Proxy(p.uid, first.GetNode().GetId(), "")
	stream := deltaxds.NewStream(proxy, clock.RealClock{})
	proxy.Begin(stream)
	err = stream.Serve(sharing{rpc}, first)
	proxy.End(err)
	return err
}

// sharing sends responses without copying the resources in them.
type sharing struct{ envoyStream }

func (s sharing) SendShared(r *deltaxds.Response) error { return s.SendMsg(r) }

// secrets serves a real Envoy's.
type secrets struct {
	secret.UnimplementedSecretDiscoveryServiceServer
	source ca.Secrets
}

// DeltaSecrets implements SecretDiscoveryService.
func (s secrets) DeltaSecrets(rpc secret.SecretDiscoveryService_DeltaSecretsServer) error {
	return deltaxds.NewStream(s.source, clock.RealClock{}).Serve(rpc, nil)
}
