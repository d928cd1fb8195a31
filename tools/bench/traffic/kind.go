package traffic

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Kind is a sort of traffic.
type Kind string

// The kinds, and what a unit of each is.
const (
	HTTP1   Kind = "http1"     // a request, one at a time on each connection
	HTTP2   Kind = "http2"     // a request; all share one connection, on which as many wait at a time as there would be connections
	Unary   Kind = "grpc"      // a call
	Stream  Kind = "stream"    // a message each way in one call of gRPC
	Bulk    Kind = "tcp"       // 64 KiB to the server
	Connect Kind = "connect"   // a new connection, one byte each way
	Echo    Kind = "echo"      // a byte each way on a connection of TCP
	Socket  Kind = "websocket" // a byte each way on a connection that was upgraded
	Greeted Kind = "greeting"  // a new connection, and the server's first byte
	OwnTLS  Kind = "tls"       // a new connection with TLS of the application's own, one byte each way
)

// Kinds are all of them.
var Kinds = []Kind{HTTP1, HTTP2, Unary, Stream, Bulk, Connect, Echo, Socket, Greeted, OwnTLS}

var ports = map[Kind]Port{HTTP1: httpPort, HTTP2: httpPort, Unary: grpcPort, Stream: grpcPort, Bulk: tcpPort, Connect: tcpPort, Echo: tcpPort, Socket: httpPort,
	Greeted: greetingPort, OwnTLS: tlsPort}

// Port is where the server takes this kind of traffic.
func (k Kind) Port() Port { return ports[k] }

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
		return anew(t, func(conn net.Conn) error { return echoed(conn, echoes) }), nil
	case Greeted:
		return anew(t, func(conn net.Conn) error {
			_, err := io.ReadFull(conn, make([]byte, 1))
			return err
		}), nil
	case OwnTLS:
		return anew(t, func(conn net.Conn) error {
			return echoed(tls.Client(conn, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, ServerName: t.Host}), echoes) //nolint:gosec // nobody's identity is measured
		}), nil
	case Echo:
		conn, err := t.dial(ctx)
		return echo{conn}, err
	case Socket:
		return upgrade(ctx, t)
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
	if t.Token != "" {
		req.Header.Set("Authorization", "Bearer "+t.Token)
	}
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
	token  string
}

func newGRPC(ctx context.Context, k Kind, t Target) (*rpc, error) {
	conn, err := grpc.NewClient("passthrough:///"+t.Address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(t.Host))
	if err != nil {
		return nil, err
	}
	if t.Token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+t.Token)
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &rpc{token: t.Token, ClientConn: conn, cancel: cancel}
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
		if c.token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.token)
		}
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

// echo is a connection on which bytes come back.
type echo struct{ net.Conn }

func (c echo) ask(context.Context) error { return echoed(c.Conn, echoes) }

// echoed says a byte and waits for it to come back.
func echoed(conn net.Conn, b byte) error {
	if err := conn.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return err
	}
	one := []byte{b}
	if _, err := conn.Write(one); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, one)
	return err
}

func upgrade(ctx context.Context, t Target) (client, error) {
	conn, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s\r\n", t.Path, t.Host, upgraded, t.bearer()); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(conn.reader, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, fmt.Errorf("the upgrade is answered with %s", resp.Status)
	}
	return echo{conn.Conn}, nil
}

// fresh uses a new connection for each unit.
type fresh struct {
	Target
	use func(net.Conn) error
}

func anew(t Target, use func(net.Conn) error) client { return fresh{t, use} }

func (c fresh) ask(ctx context.Context) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return err
	}
	return c.use(conn)
}

func (fresh) Close() error { return nil }
