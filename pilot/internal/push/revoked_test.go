package push

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// echo is an application that speaks TCP.
func echo(t *testing.T) uint32 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its connection, which Envoy's end closes
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return uint32(l.Addr().(*net.TCPAddr).Port)
}

// A revocation keeps new TCP connections out within moments. One that is open goes on until it is closed: what Envoy could
// do is close everybody's.
func TestRevokedIdentityOpensNoTCPConnection(t *testing.T) {
	target := echo(t)
	m := newMesh(t)
	db, endpoints := service("shop", "db", 5432), slice("shop", "db", "127.0.0.3")
	port := &db.Object.(*registry.Service).Ports[0]
	port.Target, port.Protocol = target, protocol.TCP
	endpoints.Object.(*registry.Slice).Ports[0].Number = target
	m.apply(db, endpoints, pod("shop", "db", "db-0", "127.0.0.3"))
	ca := envoytest.NewCA(t)
	m.sidecar(ca, account("shop", "db"), "shop/db-0", target)
	leaf := ca.Issue(t, account("shop", "client").String())

	dial := func() net.Conn {
		conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.3:%d", target), &tls.Config{ //nolint:gosec // the server's name is not what is tested
			Certificates: []tls.Certificate{leaf.TLS}, InsecureSkipVerify: true, NextProtos: []string{"istio"}, MinVersion: tls.VersionTLS13})
		if err != nil {
			return nil
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	answers := func(conn net.Conn) bool {
		if conn == nil || conn.SetDeadline(time.Now().Add(5*time.Second)) != nil {
			return false
		}
		buf := make([]byte, 1)
		_, err := conn.Write([]byte("x"))
		if err == nil {
			_, err = conn.Read(buf)
		}
		return err == nil && buf[0] == 'x'
	}
	within := func(what string, cond func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not within 20 seconds: %s", what)
			}
		}
	}
	var open net.Conn
	within("a connection", func() bool { open = dial(); return answers(open) })
	m.apply(revoke("r", "client", ""))
	began := time.Now()
	within("refusal", func() bool { return !answers(dial()) })
	t.Logf("refused after %s", time.Since(began))
	if !answers(open) {
		t.Error("the open connection was closed, which is better than what the documentation says")
	}
	m.apply(registry.Event{Kind: registry.Revocations, ID: "r"})
	within("a connection again", func() bool { return answers(dial()) })
}
