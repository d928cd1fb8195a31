package agents

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/grpc"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds/nodexdstest"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
)

// TestMain is the agents' process where a test has started it.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == CommandName {
		cmd := Command()
		cmd.SetArgs([]string{})
		if err := cmd.Execute(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serve serves a Pilot at an address until what it returns is called.
func serve(t *testing.T, ca *svidtest.CA, pilot *nodexdstest.Pilot, address string) (at string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	own := ca.SVID(ca.ID(mesh.Namespace, mesh.PilotAccount), time.Now().Add(time.Hour))
	secure := mtls.Server(own, ca.Bundle(), mtls.MemberOf(mesh.DefaultTrustDomain))
	srv := grpc.NewServer(append(mtls.ServerOptions(secure, mtls.Limits{}), grpc.ForceServerCodecV2(deltaxds.Codec()))...)
	nodev1.RegisterNodeConfigurationServer(srv, pilot)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	return l.Addr().String(), srv.Stop
}

func settingsOf(t *testing.T, ca *svidtest.CA, address string, nodes, pods int) (s Settings, members []fleet.Member) {
	t.Helper()
	dir := t.TempDir()
	s = Settings{Pilot: address, Roots: ca.PEM()}
	for n := range nodes {
		name := fmt.Sprintf("node-%d", n)
		own := ca.SVIDOf(ca.ID(mesh.Namespace, mesh.AgentAccount), spiffe.Pod{Name: "agent", UID: "agent-" + name, Node: name}, time.Now().Add(time.Hour))
		chain, key, err := own.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		node := Node{Name: name, Chain: chain, Key: key}
		for p := range pods {
			m := fleet.Member{Namespace: "a", Pod: fmt.Sprintf("p-%d-%d", n, p), UID: fmt.Sprintf("uid-%d-%d", n, p), Node: name,
				Socket: filepath.Join(dir, fmt.Sprintf("%d-%d.sock", n, p))}
			node.Pods = append(node.Pods, Pod{UID: m.UID, Name: m.Namespace + "/" + m.Pod, Socket: m.Socket})
			members = append(members, m)
		}
		s.Nodes = append(s.Nodes, node)
	}
	return s, members
}

func clusters(t *testing.T, n int) *nodexdstest.Pilot {
	t.Helper()
	pilot := nodexdstest.NewPilot()
	for i := range n {
		r, err := deltaxds.NewResource(fmt.Sprint(i), &cluster.Cluster{Name: fmt.Sprint(i)})
		if err != nil {
			t.Fatal(err)
		}
		pilot.Set(deltaxds.ClusterType, r)
	}
	return pilot
}

// The pods' Envoys have what Pilot has, which has sent it once a node, to an agent that names its node; a Pilot that comes anew is told what is there.
func TestAgentsInAProcessOfTheirOwnServeTheirPods(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ca := svidtest.New(t, mesh.DefaultTrustDomain)
	pilot := clusters(t, 50)
	address, stop := serve(t, ca, pilot, "127.0.0.1:0")
	settings, members := settingsOf(t, ca, address, 1, 3)
	p, err := Start(ctx, settings, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	}()
	f := fleet.New(members)
	defer f.Disconnect()
	if err := p.Follow(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	if got := f.Traffic().Types["CDS"].Resources; got != 150 || pilot.Sent() != 50 {
		t.Errorf("%d clusters have come to three proxies, and %d to their agent", got, pilot.Sent())
	}
	first := applied(ctx, t, p, 1)
	if first.FromPilot < 50 || first.ToPilot == 0 || first.Messages == 0 || time.Since(first.Last) > time.Minute {
		t.Errorf("with Pilot there was %+v", first)
	}
	if pod, err := spiffe.PodOf(leaf(pilot)); err != nil || pod.Node != "node-0" {
		t.Errorf("the agent is of %+v, %v", pod, err)
	}
	if m, err := p.Memory(); err != nil || m.Resident == 0 {
		t.Errorf("memory %+v, %v", m, err)
	}
	if cpu, err := p.CPU(); err != nil || cpu == 0 {
		t.Errorf("CPU %s, %v", cpu, err)
	}

	stop()
	again := clusters(t, 50)
	serve(t, ca, again, address)
	after := applied(ctx, t, p, 2).Since(first)
	if again.Sent() != 0 || after.FromPilot > first.FromPilot/2 {
		t.Errorf("a new Pilot has sent %d clusters again, and %+v", again.Sent(), after)
	}
}

// applied waits until the first updates of so many streams have been applied.
func applied(ctx context.Context, t *testing.T, p *Process, streams int64) Count {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := p.Count()
		if err != nil {
			t.Fatal(err)
		}
		if c.Applied >= streams {
			return c
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the updates of %d streams have been applied, want %d", c.Applied, streams)
		}
	}
}

func leaf(p *nodexdstest.Pilot) *x509.Certificate { return p.Peers()[0] }

// Settings that cannot be are an error of the one who starts the process, and the process ends.
func TestProcessWithBadSettingsEnds(t *testing.T) {
	ca := svidtest.New(t, mesh.DefaultTrustDomain)
	settings, _ := settingsOf(t, ca, "127.0.0.1:1", 1, 1)
	settings.Nodes[0].Pods[0].Socket = filepath.Join(t.TempDir(), "none", "agent.sock")
	if p, err := Start(t.Context(), settings, os.Stderr); err == nil {
		t.Error("it has started", p.Stop())
	}
}
