// Package identitytest has what a node needs for its pods' identities, for tests: a Citadel, a bundle and an issuer.
package identitytest

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

// Quiet logs nothing.
var Quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// Node is one node of the test.
type Node struct {
	t       testing.TB
	CA      *svidtest.CA
	Citadel *svidtest.Citadel
	Bundle  *svid.Bundle
	Issuer  *identity.Issuer
}

// New returns a node that reads the time from c and logs to log. Its bundle comes by Citadel's stream.
func New(t testing.TB, c clock.Clock, log *slog.Logger) *Node {
	t.Helper()
	ca := svidtest.New(t, "cluster.local")
	n := &Node{t: t, CA: ca, Citadel: ca.Serve(time.Hour)}
	n.Citadel.Publish(ca.Message(1))
	var err error
	if n.Bundle, err = svid.NewBundle("cluster.local", mesh.Namespace, fake.NewClientset(), log); err != nil {
		t.Fatal(err)
	}
	if err := n.Bundle.Set(ca.PEM()); err != nil {
		t.Fatal(err)
	}
	own := svid.NewRotator(func(context.Context) (*x509svid.SVID, error) {
		return ca.SVID(ca.ID(mesh.Namespace, mesh.AgentAccount), time.Now().Add(time.Hour)), nil
	}, clock.RealClock{}, log, nil)
	follower, err := svid.NewFollower(n.Citadel.Address, "cluster.local", own, n.Bundle, clock.RealClock{}, log)
	if err != nil {
		t.Fatal(err)
	}
	n.Run(own.Run)
	<-own.Ready()
	n.Run(follower.Run)
	requester, err := svid.NewRequester(n.Citadel.Address, "cluster.local", n.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { requester.Close() })
	token := filepath.Join(t.TempDir(), "agent-token")
	if err := os.WriteFile(token, []byte("the-agents-own-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Issuer = &identity.Issuer{Requester: requester, Bundle: n.Bundle, TrustDomain: "cluster.local", TokenFile: token, Clock: c, Metrics: identity.NewMetrics(), Log: log}
	n.Eventually("the bundle of the stream", func() bool {
		trust, _, err := n.Bundle.Current()
		return err == nil && trust.Sequence == 1
	})
	return n
}

// Run runs f until the test ends.
func (n *Node) Run(f func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	n.t.Cleanup(func() { cancel(); <-done })
}

// Pod returns a pod's identity, running. It has a token, and its SVID soon.
func (n *Node) Pod(namespace, pod, account string) *identity.Identity {
	n.t.Helper()
	p, err := n.Issuer.New(identity.Facts{Namespace: namespace, Pod: pod, UID: "uid-of-" + pod, ServiceAccount: account})
	if err != nil {
		n.t.Fatal(err)
	}
	token := "the-token-of-" + pod
	n.Citadel.Account(token, n.CA.ID(namespace, account))
	p.SetToken(token, time.Time{})
	n.Run(p.Run)
	return p
}

// Ready waits for the pod's SVID.
func (n *Node) Ready(p *identity.Identity) {
	n.t.Helper()
	select {
	case <-p.Ready():
	case <-time.After(20 * time.Second):
		n.t.Fatalf("no SVID: %v", p.Status().LastError)
	}
}

// Socket serves on a Unix socket and returns its path.
func (n *Node) Socket(register func(grpc.ServiceRegistrar)) string {
	n.t.Helper()
	dir, err := os.MkdirTemp("", "pod") // shorter than t.TempDir, as the path of a socket must be
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, mesh.AgentSocket)
	l, err := net.Listen("unix", path)
	if err != nil {
		n.t.Fatal(err)
	}
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	register(server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	n.t.Cleanup(func() { server.Stop(); <-done })
	return path
}

// Dial connects to a Socket.
func (n *Node) Dial(path string) *grpc.ClientConn {
	n.t.Helper()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { conn.Close() })
	return conn
}

// Eventually fails the test if cond does not come true.
func (n *Node) Eventually(what string, cond func() bool) {
	n.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if cond() {
			return
		}
	}
	n.t.Fatalf("not within twenty seconds: %s", what)
}
