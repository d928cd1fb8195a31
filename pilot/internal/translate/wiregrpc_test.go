package translate_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// play is how the server of a call behaves, by the call's method: it hears so many messages (-1: until the client has no more), says others, and ends with a status.
type play struct {
	hears, says int
	repeats     bool // what it hears
	end         error
	headers     metadata.MD
	trailers    metadata.MD
	begins      bool          // its answer, with the head alone, before it is silent
	silent      time.Duration // before it ends
}

var detailed = func() error {
	st, err := status.New(codes.FailedPrecondition, "no: 100% \"odd\"\nünd").WithDetails(wrapperspb.String("why"))
	if err != nil {
		panic(err)
	}
	return st.Err()
}()

var plays = map[string]play{
	"/wire.Calls/Unary":         {hears: 1, says: 1, headers: metadata.Pairs("x-head", "1", "x-bin", "\x00\xff"), trailers: metadata.Pairs("x-tail", "2", "x-tail-bin", "\x01")},
	"/wire.Calls/ServerStream":  {hears: 1, says: 50},
	"/wire.Calls/ClientStream":  {hears: -1, says: 1},
	"/wire.Calls/Bidi":          {hears: -1, repeats: true, trailers: metadata.Pairs("x-tail", "a", "x-tail", "b")},
	"/wire.Calls/Fails":         {hears: 1, end: detailed, trailers: metadata.Pairs("x-tail", "2")},
	"/wire.Calls/FailsAtOnce":   {end: status.Error(codes.PermissionDenied, "")},
	"/wire.Calls/FailsLater":    {hears: 1, says: 3, end: status.Error(codes.DataLoss, "lost"), headers: metadata.Pairs("x-head", "1")},
	"/wire.Calls/Slow":          {hears: 1, says: 1, silent: 300 * time.Millisecond},
	"/wire.Calls/TooSlow":       {hears: 1, silent: 20 * time.Second},
	"/wire.Calls/TooSlowToEnd":  {begins: true, silent: time.Hour},
	"/wire.Calls/Unimplemented": {end: status.Error(codes.Unimplemented, "unknown")},
}

// calls is a server that plays.
type calls struct {
	port uint32
	open atomic.Int64 // of its calls
	stop func()
}

// serveCalls has a server play until the test ends, and says at which port.
func serveCalls(t *testing.T) uint32 {
	t.Helper()
	return startCalls(t).port
}

func startCalls(t *testing.T) *calls {
	t.Helper()
	c := &calls{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		c.open.Add(1)
		defer c.open.Add(-1)
		method, _ := grpc.MethodFromServerStream(s)
		p := plays[method]
		got, _ := metadata.FromIncomingContext(s.Context())
		p.headers = metadata.Join(p.headers, metadata.MD{"x-asked": got.Get("x-ask"), "x-asked-bin": got.Get("x-ask-bin"), "x-agent": got.Get("user-agent")})
		if err := s.SetHeader(p.headers); err != nil {
			return err
		}
		s.SetTrailer(p.trailers)
		heard := 0
		for p.hears < 0 || heard < p.hears {
			m := &wrapperspb.StringValue{}
			if err := s.RecvMsg(m); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return err
			}
			heard++
			if p.repeats {
				if err := s.SendMsg(m); err != nil {
					return err
				}
			}
		}
		if p.begins {
			if err := s.SendHeader(nil); err != nil {
				return err
			}
		}
		select {
		case <-time.After(p.silent):
		case <-s.Context().Done():
			return s.Context().Err()
		}
		for i := range p.says {
			if err := s.SendMsg(wrapperspb.String(fmt.Sprintf("%d of %d heard", i, heard))); err != nil {
				return err
			}
		}
		return p.end
	}))
	done := make(chan struct{})
	go func() { _ = srv.Serve(l); close(done) }()
	c.port, c.stop = uint32(l.Addr().(*net.TCPAddr).Port), func() { srv.Stop(); <-done }
	t.Cleanup(c.stop)
	return c
}

// TestGRPCArrivesAsItWasSent makes calls of all four kinds without proxies, which says what is right, and through the client's and the server's.
func TestGRPCArrivesAsItWasSent(t *testing.T) {
	envoytest.Find(t)
	app := serveCalls(t)
	proxied := throughProxies(t, app)
	for method := range plays {
		t.Run(strings.TrimPrefix(method, "/wire.Calls/"), func(t *testing.T) {
			want := called(t, app, method)
			if strings.Contains(want, "Unavailable") {
				t.Fatalf("without proxies: %s", want)
			}
			for what, at := range proxied {
				if got := called(t, at, method); got != want {
					t.Errorf("%s:\n%s\nwithout proxies:\n%s", what, got, want)
				}
			}
		})
	}
}

// throughProxies are the ports at which an application is: without proxies, and behind those of a declared and of an undeclared port.
func throughProxies(t *testing.T, app uint32) map[string]uint32 {
	t.Helper()
	ports, ca := envoytest.FreePorts(t, 4), envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Strict, ca: ca, leaf: ca.Issue(t, sceneClient)}
	for i, p := range []protocol.Protocol{protocol.HTTP2, protocol.Auto} {
		s.inbound(ports[2*i], app, p, "calls")
		s.outbound(ports[2*i+1], p, "calls", nil, compile.Endpoint{Address: "127.0.0.1", Port: ports[2*i]})
	}
	s.start(func(*grpc.Server) {})
	return map[string]uint32{"without proxies": app, "declared": ports[1], "undeclared": ports[3]}
}

// called is everything that a client can see of a call: of headers and trailers those that are the application's.
func called(t *testing.T, at uint32, method string) string {
	t.Helper()
	conn := dialed(t, at)
	deadline := 10 * time.Second
	if plays[method].silent > deadline {
		deadline = 500 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "x-ask", "a", "x-ask", "b", "x-ask-bin", "\x00\x01"), deadline)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return "no stream: " + err.Error()
	}
	var out strings.Builder
	for i := range 3 {
		if err := stream.SendMsg(wrapperspb.String(fmt.Sprintf("message %d%s", i, strings.Repeat(".", 10000*i)))); err != nil {
			break // what the server has said comes with RecvMsg
		}
	}
	_ = stream.CloseSend()
	for {
		m := &wrapperspb.StringValue{}
		if err = stream.RecvMsg(m); err != nil {
			break
		}
		fmt.Fprintf(&out, "%.30s (%d); ", m.GetValue(), len(m.GetValue()))
	}
	headers, _ := stream.Header()
	st := status.Convert(err)
	if errors.Is(err, io.EOF) {
		st = status.New(codes.OK, "")
	}
	if st.Code() == codes.DeadlineExceeded { // who finds out first says it in words of its own, and a head that the server sends then may come too late
		st, headers = status.New(codes.DeadlineExceeded, ""), nil
	}
	fmt.Fprintf(&out, "%s %q %v; headers %s; trailers %s", st.Code(), st.Message(), st.Details(), own(headers), own(stream.Trailer()))
	return out.String()
}

func own(md metadata.MD) string {
	var out []string
	for name, values := range md {
		if strings.HasPrefix(name, "x-") && name != "x-request-id" {
			out = append(out, fmt.Sprintf("%s=%q", name, values))
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func dialed(t *testing.T, at uint32) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("127.0.0.1:"+port(at), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
