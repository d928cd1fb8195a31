package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The ports of the server.
const (
	HTTPPort = 8080 // HTTP/1.1 and HTTP/2
	GRPCPort = 8081
	TCPPort  = 9000
)

// What a client of TCPPort says first.
const (
	echoes = 'e' // and has that byte sent back
	sinks  = 's' // and sends what nobody looks at
)

// The service of gRPC has a name by which the paths of its calls are under the same path as those of HTTP.
const (
	getMethod   = "/accounts/Get"
	watchMethod = "/accounts/Watch"
)

var body = []byte(strings.Repeat("0123456789abcdef", 16))

func serveCommand() *cobra.Command {
	return &cobra.Command{Use: "serve", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context()) }}
}

// serve serves all kinds of traffic until ctx ends.
func serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	p := &http.Protocols{}
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	web := &http.Server{Protocols: p, ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(body)
	})}
	calls := grpc.NewServer()
	calls.RegisterService(service, nil)
	for _, s := range []struct {
		port  int
		serve func(net.Listener) error
		stop  func()
	}{{HTTPPort, web.Serve, func() { _ = web.Close() }}, {GRPCPort, calls.Serve, calls.Stop}, {TCPPort, serveTCP, func() {}}} {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf(":%d", s.port))
		if err != nil {
			return fmt.Errorf("server: %w", err)
		}
		context.AfterFunc(ctx, func() { s.stop(); _ = l.Close() })
		g.Go(func() error {
			if err := s.serve(l); err != nil && ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("server: %w", err)
			}
			return nil
		})
	}
	return g.Wait()
}

func serveTCP(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() { // ends with its client, or with the process
			defer conn.Close()
			first := make([]byte, 1)
			if _, err := io.ReadFull(conn, first); err != nil {
				return
			}
			if first[0] == echoes {
				_, _ = conn.Write(first)
			}
			_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, conn, make([]byte, 256<<10))
		}()
	}
}

var service = &grpc.ServiceDesc{ServiceName: "accounts", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Get", Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := &wrapperspb.BytesValue{}
		return wrapperspb.Bytes(body), decode(in)
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
		for {
			in := &wrapperspb.BytesValue{}
			if err := s.RecvMsg(in); err != nil {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			if err := s.SendMsg(in); err != nil {
				return err
			}
		}
	}}},
}
