package mtls_test

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

// echo answers with the identity of its peer.
type echo struct {
	healthapi.UnimplementedHealthServer
	seen chan spiffe.ID
}

func (e *echo) Check(ctx context.Context, _ *healthapi.HealthCheckRequest) (*healthapi.HealthCheckResponse, error) {
	id, err := mtls.PeerID(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	e.seen <- id
	return &healthapi.HealthCheckResponse{}, nil
}

func serve(t *testing.T, c *tls.Config) (*echo, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{seen: make(chan spiffe.ID, 10)}
	s := grpc.NewServer(mtls.ServerOptions(c, mtls.Limits{})...)
	healthapi.RegisterHealthServer(s, e)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return e, l.Addr().String()
}

func call(t *testing.T, address string, c *tls.Config) error {
	t.Helper()
	conn, err := grpc.NewClient(address, mtls.DialOptions(c)...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = healthapi.NewHealthClient(conn).Check(ctx, &healthapi.HealthCheckRequest{})
	return err
}

func TestPeersAreAuthorizedByIdentity(t *testing.T) {
	ca, other := svidtest.New(t, "cluster.local"), svidtest.New(t, "cluster.local")
	foreign := svidtest.New(t, "other.domain")
	end := time.Now().Add(time.Hour)
	pilot, agent, stranger := ca.ID("bulwark-system", "bulwark-pilot"), ca.ID("bulwark-system", "bulwark-agent"), ca.ID("bulwark-system", "stranger")
	e, address := serve(t, mtls.Server(ca.SVID(pilot, end), ca.Bundle(), mtls.OneOf(agent)))
	client := func(c *svidtest.CA, id spiffe.ID, until time.Time) *tls.Config {
		return mtls.Client(c.SVID(id, until), ca.Bundle(), mtls.OneOf(pilot))
	}

	if err := call(t, address, client(ca, agent, end)); err != nil {
		t.Fatal(err)
	}
	if got := <-e.seen; got != agent {
		t.Fatalf("peer is %s", got)
	}
	for name, c := range map[string]*tls.Config{
		"another identity":              client(ca, stranger, end),
		"another CA":                    client(other, agent, end),
		"another trust domain":          client(foreign, foreign.ID("bulwark-system", "bulwark-agent"), end),
		"an expired certificate":        client(ca, agent, time.Now().Add(-time.Minute)),
		"no certificate":                mtls.ClientWithoutCert(ca.Bundle(), mtls.OneOf(pilot)),
		"the server is not whom I want": mtls.Client(ca.SVID(agent, end), ca.Bundle(), mtls.OneOf(stranger)),
		"the server's CA is not mine":   mtls.Client(ca.SVID(agent, end), other.Bundle(), mtls.OneOf(pilot)),
	} {
		if err := call(t, address, c); err == nil {
			t.Errorf("%s: call succeeded", name)
		}
	}
	old := client(ca, agent, end)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if err := call(t, address, old); err == nil {
		t.Error("TLS 1.2: call succeeded")
	}
}

func TestOptionalCertificateIsVerifiedIfItIsGiven(t *testing.T) {
	ca, other := svidtest.New(t, "cluster.local"), svidtest.New(t, "cluster.local")
	end := time.Now().Add(time.Hour)
	citadel, agent, stranger := ca.ID("bulwark-system", "bulwark-citadel"), ca.ID("bulwark-system", "bulwark-agent"), ca.ID("finance", "stranger")
	e, address := serve(t, mtls.ServerWithOptionalClientCert(ca.SVID(citadel, end), ca.Bundle(), mtls.OneOf(agent)))
	client := func(c *svidtest.CA, id spiffe.ID, until time.Time) *tls.Config {
		return mtls.Client(c.SVID(id, until), ca.Bundle(), mtls.OneOf(citadel))
	}
	if err := call(t, address, client(ca, agent, end)); err != nil {
		t.Fatal(err)
	}
	if got := <-e.seen; got != agent {
		t.Fatalf("peer is %s", got)
	}
	// The echo itself refuses whom it does not know, so the call has got through the handshake.
	if err := call(t, address, mtls.ClientWithoutCert(ca.Bundle(), mtls.OneOf(citadel))); status.Code(err) != codes.Unauthenticated {
		t.Fatalf("without a certificate: %v", err)
	}
	for name, c := range map[string]*tls.Config{
		"another identity":       client(ca, stranger, end),
		"another CA":             client(other, agent, end),
		"an expired certificate": client(ca, agent, time.Now().Add(-time.Minute)),
	} {
		if err := call(t, address, c); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v; want no connection", name, err)
		}
	}
	old := client(ca, agent, end)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if err := call(t, address, old); status.Code(err) != codes.Unavailable {
		t.Errorf("TLS 1.2: %v", err)
	}
}

func TestMemberOfHoldsToTheTrustDomainAndForm(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	end := time.Now().Add(time.Hour)
	server, member := ca.ID("a", "server"), ca.ID("b", "member")
	_, address := serve(t, mtls.Server(ca.SVID(server, end), ca.Bundle(), mtls.MemberOf("cluster.local")))
	if err := call(t, address, mtls.Client(ca.SVID(member, end), ca.Bundle(), mtls.MemberOf("cluster.local"))); err != nil {
		t.Fatal(err)
	}
	if err := call(t, address, mtls.Client(ca.SVID(member, end), ca.Bundle(), mtls.MemberOf("other.domain"))); err == nil {
		t.Fatal("a server of another trust domain was accepted")
	}
}

// A resumed session skips the verification of the peer, so it would outlive its bundle.
func TestSessionsAreNotResumed(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	id := ca.ID("a", "b")
	svid := ca.SVID(id, time.Now().Add(time.Hour))
	t.Run("certificate demanded", func(t *testing.T) {
		sessionsAreNotResumed(t, ca, id, mtls.Server(svid, ca.Bundle(), mtls.OneOf(id)))
	})
	t.Run("certificate optional", func(t *testing.T) {
		sessionsAreNotResumed(t, ca, id, mtls.ServerWithOptionalClientCert(svid, ca.Bundle(), mtls.OneOf(id)))
	})
	t.Run("no certificate asked for", func(t *testing.T) {
		sessionsAreNotResumed(t, ca, id, mtls.ServerWithoutClientCert(svid))
	})
}

func sessionsAreNotResumed(t *testing.T, ca *svidtest.CA, id spiffe.ID, server *tls.Config) {
	end := time.Now().Add(time.Hour)
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("hello")) // after the ticket, if there were one
			c.Close()
		}
	}()
	config := mtls.Client(ca.SVID(id, end), ca.Bundle(), mtls.OneOf(id))
	config.ClientSessionCache = tls.NewLRUClientSessionCache(4) // an attacker's client would have one
	for range 3 {
		c, err := tls.Dial("tcp", l.Addr().String(), config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if c.ConnectionState().DidResume {
			t.Fatal("session was resumed")
		}
		c.Close()
	}
}

func TestPeerIDWithoutTLS(t *testing.T) {
	if _, err := mtls.PeerID(context.Background()); err == nil {
		t.Fatal("an identity out of nowhere")
	}
}

// Only a service account's URI is an identity, whatever else of the trust domain the CA should ever sign.
func TestMembersAreServiceAccountsOfTheTrustDomains(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	end := time.Now().Add(time.Hour)
	pilot := ca.ID("bulwark-system", "bulwark-pilot")
	required, address := serve(t, mtls.Server(ca.SVID(pilot, end), ca.Bundle(), mtls.MemberOf("cluster.local", "old.example")))
	_, optional := serve(t, mtls.ServerWithOptionalClientCert(ca.SVID(pilot, end), ca.Bundle(), mtls.MemberOf("cluster.local")))
	if err := call(t, address, mtls.Client(ca.SVID(ca.ID("shop", "a"), end), ca.Bundle(), mtls.OneOf(pilot))); err != nil {
		t.Fatal(err)
	}
	if got := <-required.seen; got != ca.ID("shop", "a") {
		t.Fatalf("peer is %s", got)
	}
	for _, id := range []spiffe.ID{
		{TrustDomain: "cluster.local/x/y", Namespace: "shop", ServiceAccount: "a"},
		{TrustDomain: "cluster.local", Namespace: "shop/x", ServiceAccount: "a"},
		{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "a/b"},
		{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "a/ns/web/sa/b"},
		{TrustDomain: "cluster.local", Namespace: "Shop", ServiceAccount: "a"},
		{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "a..b"},
	} {
		for _, to := range []string{address, optional} {
			if err := call(t, to, mtls.Client(ca.SVID(id, end), ca.Bundle(), mtls.OneOf(pilot))); err == nil {
				t.Errorf("%s: call succeeded", id)
			}
		}
		_, impostor := serve(t, mtls.ServerWithoutClientCert(ca.SVID(id, end)))
		if err := call(t, impostor, mtls.ClientWithoutCert(ca.Bundle(), mtls.MemberOf("cluster.local"))); err == nil {
			t.Errorf("a server with %s was taken for a member", id)
		}
	}
}
