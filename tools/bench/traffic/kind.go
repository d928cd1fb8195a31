package traffic

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Kind is a sort of traffic.
type Kind string

// The kinds, and what a unit of each is.
const (
	HTTP1   Kind = "http1"   // a request, one at a time on each connection
	HTTP2   Kind = "http2"   // a request; all share one connection, on which as many wait at a time as there would be connections
	Unary   Kind = "grpc"    // a call
	Stream  Kind = "stream"  // a message each way in one call of gRPC
	Bulk    Kind = "tcp"     // 64 KiB to the server
	Connect Kind = "connect" // a new connection, one byte each way
)

// ports of the server.
var ports = map[Kind]int{HTTP1: HTTPPort, HTTP2: HTTPPort, Unary: GRPCPort, Stream: GRPCPort, Bulk: TCPPort, Connect: TCPPort}

// Port is where the server takes this kind of traffic.
func (k Kind) Port() int { return ports[k] }

// client is one connection of a load. Its methods are called by one goroutine.
type client interface {
	ask(context.Context) error // one unit, to its end
	Close() error
}

// open makes a client of the kind. Requests of HTTP/2 go over the transport that all clients of a load share.
func (k Kind) open(ctx context.Context, t Target, shared *http.Transport) (client, error) {
	switch k {
	case HTTP1:
		conn, err := t.connect(ctx)
		return &http1{connection: conn}, err
	case HTTP2:
		return newHTTP2(t, shared)
	case Unary, Stream:
		return newGRPC(ctx, k, t)
	case Bulk:
		conn, err := t.dial(ctx)
		if err == nil {
			_, err = conn.Write([]byte{sinks})
		}
		return bulk{conn}, err
	case Connect:
		return connects{t}, nil
	}
	return nil, fmt.Errorf("no kind of traffic %q", k)
}

type http1 struct {
	*connection
	body bytes.Buffer
}

func (c *http1) ask(context.Context) error {
	c.body.Reset()
	code, err := c.get(&c.body)
	return answered(code, c.body.Bytes(), err)
}

// answered is an error unless it is the answer that is measured.
func answered(code int, body []byte, err error) error {
	if err == nil && code != http.StatusOK {
		return fmt.Errorf("answer %d: %.200s", code, body)
	}
	return err
}

type http2 struct {
	*http.Transport
	request *http.Request
}

// transport speaks HTTP/2 without TLS.
func transport() *http.Transport {
	p := &http.Protocols{}
	p.SetUnencryptedHTTP2(true)
	return &http.Transport{Protocols: p}
}

func newHTTP2(t Target, over *http.Transport) (*http2, error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+t.Address+t.Path, nil)
	if err != nil {
		return nil, err
	}
	req.Host = t.Host
	return &http2{over, req}, nil
}

func (c *http2) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	resp, err := c.RoundTrip(c.request.WithContext(ctx))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	return answered(resp.StatusCode, body, err)
}

func (*http2) Close() error { return nil } // with the process

type rpc struct {
	*grpc.ClientConn
	stream grpc.ClientStream // nil: a call each
	cancel context.CancelFunc
}

func newGRPC(ctx context.Context, k Kind, t Target) (*rpc, error) {
	conn, err := grpc.NewClient("passthrough:///"+t.Address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(t.Host))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &rpc{ClientConn: conn, cancel: cancel}
	if k == Stream {
		c.stream, err = conn.NewStream(ctx, &service.Streams[0], watchMethod)
	}
	return c, err
}

func (c *rpc) ask(ctx context.Context) error {
	in, out := wrapperspb.Bytes(body), &wrapperspb.BytesValue{}
	if c.stream == nil {
		ctx, cancel := context.WithTimeout(ctx, answerWithin)
		defer cancel()
		return c.Invoke(ctx, getMethod, in, out)
	}
	defer time.AfterFunc(answerWithin, c.cancel).Stop()
	if err := c.stream.SendMsg(in); err != nil {
		return c.stream.RecvMsg(out) // which says why
	}
	return c.stream.RecvMsg(out)
}

func (c *rpc) Close() error {
	c.cancel()
	return c.ClientConn.Close()
}

type bulk struct{ net.Conn }

var block = make([]byte, 64<<10)

func (c bulk) ask(context.Context) error {
	if err := c.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return err
	}
	_, err := c.Write(block)
	return err
}

type connects struct{ Target }

func (c connects) ask(ctx context.Context) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return err
	}
	one := []byte{echoes}
	if _, err := conn.Write(one); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, one)
	return err
}

func (connects) Close() error { return nil }
