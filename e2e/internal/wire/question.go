package wire

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Kinds of questions besides those of calls. gRPC is asked for real here, with the health service's two methods.
const (
	GRPCUnary  Kind = "gRPC Check" // a call with one answer
	GRPCStream Kind = "gRPC Watch" // a call with a stream of answers
	Greeted    Kind = "server-first TCP"
	HTTPS      Kind = "HTTPS" // by the client itself, which takes any certificate
)

// Question is one call, of which it matters what its client is told.
type Question struct {
	Kind    Kind              `json:"kind"`
	Address string            `json:"address"` // host:port
	Method  string            `json:"method,omitempty"`
	Path    string            `json:"path,omitempty"`
	Host    string            `json:"host,omitempty"`
	SNI     string            `json:"sni,omitempty"` // of an application's own TLS
	Headers map[string]string `json:"headers,omitempty"`
}

// Answer is what the client is told: the status of a request, the code of a call by gRPC, or one of the words below.
type Answer struct {
	Got  string `json:"got"`
	Body string `json:"body,omitempty"` // of a response, at most 4 KiB of it; or what became of the connection
}

// Words of answers that have no status.
const (
	Nothing  = "nothing"   // no answer, or a connection that ends
	Line     = "a line"    // what was said came back, over TCP, TLS or a WebSocket
	Greeting = "220 hello" // what a server says first; what was said came back, too
	CutOff   = "cut off"   // after the greeting
)

// Questions returns the subcommand that asks the questions of its argument, a JSON list, all at once, and prints the answers.
func Questions() *cobra.Command {
	return &cobra.Command{Use: "questions JSON", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		var questions []Question
		if err := json.Unmarshal([]byte(args[0]), &questions); err != nil {
			return err
		}
		out := make([]Answer, len(questions))
		var wg sync.WaitGroup
		for i, q := range questions {
			wg.Go(func() { out[i] = q.ask(cmd.Context()) })
		}
		wg.Wait()
		return json.NewEncoder(os.Stdout).Encode(out)
	}}
}

func (q Question) ask(ctx context.Context) Answer {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	switch q.Kind {
	case GRPCUnary, GRPCStream:
		return q.askGRPC(ctx)
	case HTTP11, HTTP2, HTTPS:
		return q.askHTTP(ctx)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", q.Address)
	if err != nil {
		return Answer{Nothing, err.Error()}
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return Answer{Nothing, err.Error()}
	}
	return q.over(conn)
}

// over asks what is said over a connection of its own.
func (q Question) over(conn net.Conn) Answer {
	if q.Kind == TLS {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, ServerName: q.SNI, MinVersion: tls.VersionTLS12}) //nolint:gosec // the server's certificate is its own
	}
	r, got := bufio.NewReader(conn), Line
	switch q.Kind {
	case Greeted:
		greeting, err := r.ReadString('\n')
		if err != nil {
			return Answer{Nothing, err.Error()}
		}
		got = strings.TrimSpace(greeting)
	case WebSocket:
		resp, err := Call{Kind: HTTP11, Address: q.Address, Host: q.Host}.request(conn, r, cmp.Or(q.Path, "/"), q.lines()+upgrade)
		if err != nil {
			return Answer{statusOf(err), err.Error()}
		}
		got = strconv.Itoa(resp.StatusCode)
	}
	switch err := echoed(conn, r); {
	case err == nil:
		return Answer{Got: got}
	case q.Kind == Greeted:
		return Answer{CutOff, err.Error()}
	default:
		return Answer{Nothing, err.Error()}
	}
}

const upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"

func (q Question) lines() (out string) {
	for name, value := range q.Headers {
		out += textproto.CanonicalMIMEHeaderKey(name) + ": " + value + "\r\n"
	}
	return out
}

// statusOf is the status of a refused upgrade.
func statusOf(err error) string {
	var refused statusError
	if errors.As(err, &refused) {
		return strconv.Itoa(refused.code)
	}
	return Nothing
}

// statusError is an answer that is not the one that was asked for.
type statusError struct {
	code int
	text string
}

func (e statusError) Error() string { return e.text }

func (q Question) askHTTP(ctx context.Context) Answer {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(q.Kind != HTTP2)
	protocols.SetUnencryptedHTTP2(q.Kind == HTTP2)
	scheme := "http://"
	if q.Kind == HTTPS {
		scheme = "https://"
	}
	client := &http.Client{Transport: &http.Transport{Protocols: protocols, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: q.SNI, MinVersion: tls.VersionTLS12}}} //nolint:gosec // what matters is where it gets
	req, err := http.NewRequestWithContext(ctx, cmp.Or(q.Method, http.MethodGet), scheme+q.Address+cmp.Or(q.Path, "/"), http.NoBody)
	if err != nil {
		return Answer{Nothing, err.Error()}
	}
	req.Host = cmp.Or(q.Host, req.Host)
	for name, value := range q.Headers {
		req.Header.Set(name, value)
	}
	resp, err := client.Do(req)
	if err != nil {
		return Answer{Nothing, err.Error()}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return Answer{Nothing, err.Error()}
	}
	return Answer{strconv.Itoa(resp.StatusCode), strings.TrimSpace(string(body))}
}

func (q Question) askGRPC(ctx context.Context) Answer {
	conn, err := grpc.NewClient("passthrough:///"+q.Address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(cmp.Or(q.Host, q.Address)))
	if err != nil {
		return Answer{Nothing, err.Error()}
	}
	defer conn.Close()
	ctx = metadata.NewOutgoingContext(ctx, metadata.New(q.Headers))
	client := healthv1.NewHealthClient(conn)
	if q.Kind == GRPCUnary {
		_, err = client.Check(ctx, &healthv1.HealthCheckRequest{})
	} else {
		var stream grpc.ServerStreamingClient[healthv1.HealthCheckResponse]
		if stream, err = client.Watch(ctx, &healthv1.HealthCheckRequest{}); err == nil {
			_, err = stream.Recv()
		}
	}
	return Answer{status.Code(err).String(), status.Convert(err).Message()}
}

// greet is a server that speaks first, and then repeats what it hears.
func greet(conn net.Conn) {
	if err := conn.SetDeadline(time.Now().Add(forever)); err != nil {
		_ = conn.Close()
		return
	}
	if _, err := fmt.Fprintln(conn, Greeting); err != nil {
		_ = conn.Close()
		return
	}
	echo(conn)
}
