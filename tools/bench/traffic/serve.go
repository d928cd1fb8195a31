package traffic

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"time"

	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Port is a port of the server.
type Port struct {
	Name    string // as its Service declares it
	Number  int    // of the server
	Service int    // of the Service
	HTTP    bool
}

// The ports of the server.
var (
	httpPort     = Port{"http", 8080, 80, true} // HTTP/1.1 and HTTP/2
	grpcPort     = Port{"grpc", 8081, 81, true}
	tcpPort      = Port{"tcp", 9000, 82, false}
	greetingPort = Port{"mysql", 9001, 83, false} // the server speaks first
	tlsPort      = Port{"https", 9002, 84, false} // TLS of the application's own
	Ports        = []Port{httpPort, grpcPort, tcpPort, greetingPort, tlsPort}
)

// What a client of tcpPort says first.
const (
	echoes = 'e' // and has that byte and all that follows sent back
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
	web := &http.Server{Protocols: p, ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == upgraded {
			switchToBytes(w)
			return
		}
		_, _ = w.Write(body)
	})}
	certificate, err := ownCertificate()
	if err != nil {
		return err
	}
	calls := grpc.NewServer()
	calls.RegisterService(service, nil)
	authorizer := grpc.NewServer()
	auth.RegisterAuthorizationServer(authorizer, decides{})
	for _, s := range []struct {
		port  Port
		serve func(net.Listener) error
		stop  func()
	}{{httpPort, web.Serve, func() { _ = web.Close() }}, {grpcPort, calls.Serve, calls.Stop}, {Port{Number: AuthorizerPort}, authorizer.Serve, authorizer.Stop}, {tcpPort, accepting(serveTCP), func() {}}, {greetingPort, accepting(greet), func() {}},
		{tlsPort, accepting(func(c net.Conn) {
			own := tls.Server(c, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}})
			_, _ = io.Copy(own, own)
		}), func() {}}} {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf(":%d", s.port.Number))
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

// accepting has each connection served, which ends with its client, or with the process.
func accepting(serve func(net.Conn)) func(net.Listener) error {
	return func(l net.Listener) error {
		for {
			conn, err := l.Accept()
			if err != nil {
				return err
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}
}

func serveTCP(conn net.Conn) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(conn, first); err != nil {
		return
	}
	if first[0] == echoes {
		if _, err := conn.Write(first); err == nil {
			_, _ = io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{conn})
		}
		return
	}
	_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, conn, make([]byte, 256<<10))
}

func greet(conn net.Conn) {
	if _, err := conn.Write([]byte{echoes}); err == nil {
		_, _ = io.Copy(io.Discard, conn)
	}
}

// upgraded is what a connection of HTTP/1.1 goes on as, with bytes in place of frames, which nobody between would look at.
const upgraded = "websocket"

func switchToBytes(w http.ResponseWriter) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+upgraded+"\r\n\r\n"); err == nil {
		_, _ = io.Copy(struct{ io.Writer }{conn}, buffered.Reader)
	}
}

// ownCertificate is the application's, which nobody verifies.
func ownCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("the application's key: %w", err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("the application's certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
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
