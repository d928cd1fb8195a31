// Package nodexdstest brings an agent's Node and a server together without a network.
package nodexdstest

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"net/url"
	"testing"

	"google.golang.org/grpc"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Dial returns what calls a server's Follow, in a goroutine that ends with it, as Node.Run wants it. The client is whose the certificate is, which the
// server finds by CertificateOf.
func Dial(server nodev1.NodeConfigurationServer, certificate *x509.Certificate) func(context.Context) (nodexds.RPC, error) {
	return func(ctx context.Context) (nodexds.RPC, error) {
		ctx, cancel := context.WithCancel(context.WithValue(ctx, key{}, certificate))
		c := &call{ctx: ctx, up: make(chan *nodev1.Report), down: make(chan *nodev1.Update), done: make(chan struct{})}
		go func() {
			defer close(c.done)
			defer cancel() // as gRPC does
			if c.err = server.Follow(&answering{call: c}); c.err == nil {
				c.err = io.EOF
			}
		}()
		return c, nil
	}
}

type key struct{}

// CertificateOf returns the certificate of a call's client.
func CertificateOf(ctx context.Context) (*x509.Certificate, error) {
	if c, ok := ctx.Value(key{}).(*x509.Certificate); ok && c != nil {
		return c, nil
	}
	return nil, errors.New("peer presented no certificate")
}

// Certificate returns what of a certificate is looked at: the identity, and the pod.
func Certificate(t testing.TB, id string, pod spiffe.Pod) *x509.Certificate {
	t.Helper()
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	out := &x509.Certificate{URIs: []*url.URL{uri}}
	if pod != (spiffe.Pod{}) {
		extension, err := pod.Extension()
		if err != nil {
			t.Fatal(err)
		}
		out.Extensions = []pkix.Extension{extension}
	}
	return out
}

// call is a stream in memory, as its client has it.
type call struct {
	ctx  context.Context
	up   chan *nodev1.Report
	down chan *nodev1.Update
	done chan struct{} // closed when the server has returned
	err  error         // with which it did
}

func (c *call) Send(r *nodev1.Report) error {
	select {
	case c.up <- r:
		return nil
	case <-c.ctx.Done():
		return io.EOF
	}
}

func (c *call) Recv() (*nodev1.Update, error) {
	select {
	case u := <-c.down:
		return u, nil
	case <-c.done:
		return nil, c.err
	}
}

// answering is the server's side.
type answering struct {
	grpc.ServerStream // nil: of its methods only those below are called
	*call
}

func (a *answering) Context() context.Context { return a.ctx }

func (a *answering) Send(u *nodev1.Update) error {
	select {
	case a.down <- u:
		return nil
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
}

func (a *answering) SendMsg(m any) error {
	u, err := m.(*nodexds.Outgoing).Message()
	if err != nil {
		return err
	}
	return a.Send(u)
}

func (a *answering) Recv() (*nodev1.Report, error) {
	select {
	case r := <-a.up:
		return r, nil
	case <-a.ctx.Done():
		return nil, a.ctx.Err()
	}
}
