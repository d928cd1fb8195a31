package wire

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

// Kind is a protocol, and how it is used.
type Kind string

// The kinds.
const (
	HTTP10    Kind = "HTTP/1.0"
	HTTP11    Kind = "HTTP/1.1" // a connection that is kept alive
	HTTP2     Kind = "HTTP/2"
	GRPC      Kind = "gRPC" // a stream of both directions
	WebSocket Kind = "WebSocket"
	Events    Kind = "SSE"
	TLS       Kind = "TLS" // the application's own
	TCP       Kind = "TCP"
)

// Call is one connection, and what is said on it.
type Call struct {
	Kind    Kind   `json:"kind"`
	Address string `json:"address"`           // host:port
	Network string `json:"network,omitempty"` // tcp4 or tcp6, where a name is to be found in one family alone
	Host    string `json:"host"`              // of requests; "-" for none
	Token   string `json:"token,omitempty"`   // of requests
	Label   string `json:"label,omitempty"`
	// First is what is said before anything else, as a header of the PROXY protocol is, in hexadecimal; Halting says it a byte at a time.
	First   string `json:"first,omitempty"`
	Halting bool   `json:"halting,omitempty"`
}

// Outcome is what came of a call. Heard is nil where the protocol tells the server nothing of its client.
type Outcome struct {
	Call
	OK    bool   `json:"ok"`
	Heard *Heard `json:"heard,omitempty"`
	Error string `json:"error,omitempty"`
	Beats int    `json:"beats,omitempty"` // exchanges over a connection that was held
}

func (o Outcome) String() string {
	return fmt.Sprintf("%s %s to %s%s, Host %q: ok %v, heard %+v, error %q, %d exchanges", o.Label, o.Kind, o.Network, o.Address, o.Host, o.OK, o.Heard, o.Error, o.Beats)
}

const (
	limit = 8 * time.Second      // for one exchange
	halt  = 2 * time.Millisecond // between bytes, so that each is a packet
)

// Calls returns the subcommand that makes the calls of its argument, a JSON list, and prints their outcomes.
func Calls() *cobra.Command {
	return &cobra.Command{Use: "calls JSON", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return each(args[0], func(c Call) Outcome { return c.held(cmd.Context(), 0) })
	}}
}

// Hold returns the subcommand that opens a connection for each call of its argument, a JSON list, and goes on exchanging over it. It
// writes to standard error when all are open, and prints their outcomes after a while. A connection that ends before is an error.
func Hold() *cobra.Command {
	var duration time.Duration
	cmd := &cobra.Command{Use: "hold JSON", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		var open sync.WaitGroup
		var calls []Call
		if err := json.Unmarshal([]byte(args[0]), &calls); err != nil {
			return err
		}
		open.Add(len(calls))
		go func() { open.Wait(); fmt.Fprintln(os.Stderr, "all are open") }() // ends with the calls
		return each(args[0], func(c Call) Outcome {
			first := sync.OnceFunc(open.Done)
			defer first()
			return c.held(context.WithValue(cmd.Context(), opened{}, first), duration)
		})
	}}
	cmd.Flags().DurationVar(&duration, "duration", 10*time.Second, "how long")
	return cmd
}

type opened struct{}

func each(list string, do func(Call) Outcome) error {
	var calls []Call
	if err := json.Unmarshal([]byte(list), &calls); err != nil {
		return err
	}
	out := make([]Outcome, len(calls))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 64)
	for i, c := range calls {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			out[i] = do(c)
		})
	}
	wg.Wait()
	return json.NewEncoder(os.Stdout).Encode(out)
}

// session is an open connection: each exchange asks and is answered once.
type session struct {
	exchange func() error
	heard    *Heard
	end      func()
}

// held makes a call and goes on exchanging for a while.
func (c Call) held(ctx context.Context, duration time.Duration) Outcome {
	out := Outcome{Call: c}
	s, err := c.open(ctx)
	if err != nil {
		out.Error = err.Error()
		return out
	}
	defer s.end()
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for end := time.Now().Add(duration); ; {
		if err := s.exchange(); err != nil {
			out.Error = fmt.Sprintf("after %d exchanges: %v", out.Beats, err)
			return out
		}
		if out.Beats++; out.Beats == 1 {
			if first, ok := ctx.Value(opened{}).(func()); ok {
				first()
			}
		}
		if !time.Now().Before(end) {
			out.OK, out.Heard = true, s.heard
			return out
		}
		<-tick.C
	}
}

// dial makes the call's connection, and says on it what comes first.
func (c Call) dial(ctx context.Context) (net.Conn, error) {
	first, err := hex.DecodeString(c.First)
	if err != nil {
		return nil, fmt.Errorf("what is said first: %w", err)
	}
	conn, err := (&net.Dialer{Timeout: limit}).DialContext(ctx, c.network(), c.Address)
	if err != nil {
		return nil, err
	}
	size := max(len(first), 1)
	if c.Halting {
		size = 1
	}
	for part := range slices.Chunk(first, size) {
		if _, err := conn.Write(part); err != nil {
			_ = conn.Close()
			return nil, err
		}
		if c.Halting {
			time.Sleep(halt)
		}
	}
	return conn, nil
}

func (c Call) open(ctx context.Context) (*session, error) {
	if c.Kind == HTTP2 || c.Kind == GRPC {
		return c.openHTTP2(ctx)
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	if c.Kind == TLS {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}) //nolint:gosec // the server's certificate is its own
	}
	s := &session{end: func() { _ = conn.Close() }}
	r := bufio.NewReader(conn)
	bounded := func(f func() error) func() error {
		return func() error {
			if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
				return err
			}
			return f()
		}
	}
	line := func() error { return echoed(conn, r) }
	switch c.Kind {
	case TLS, TCP:
		s.exchange = bounded(line)
	case HTTP10, HTTP11:
		s.exchange = bounded(func() error {
			resp, err := c.request(conn, r, "/", "")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.Close && c.Kind == HTTP11 {
				return fmt.Errorf("the server closes the connection")
			}
			s.heard = &Heard{}
			return json.NewDecoder(resp.Body).Decode(s.heard)
		})
	case WebSocket:
		err = bounded(func() error {
			resp, err := c.request(conn, r, "/", upgrade)
			if err == nil {
				s.heard = &Heard{Peer: resp.Header.Get("X-Peer")}
			}
			return err
		})()
		s.exchange = bounded(line)
	case Events:
		var resp *http.Response
		err = bounded(func() (err error) { resp, err = c.request(conn, r, "/events", ""); return })()
		if err == nil {
			body := bufio.NewReader(resp.Body)
			s.exchange = bounded(func() error { _, err := body.ReadString('\n'); return err })
		}
	default:
		err = fmt.Errorf("no such kind: %q", c.Kind)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return s, nil
}

func (c Call) request(w io.Writer, r *bufio.Reader, path, headers string) (*http.Response, error) {
	version, host := "HTTP/1.1", "Host: "+c.host()+"\r\n"
	if c.Kind == HTTP10 {
		version = "HTTP/1.0"
	}
	if c.Host == "-" {
		host = ""
	}
	if c.Token != "" {
		headers += "Authorization: Bearer " + c.Token + "\r\n"
	}
	if _, err := fmt.Fprintf(w, "GET %s %s\r\n%s%s\r\n", path, version, host, headers); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return nil, statusError{resp.StatusCode, fmt.Sprintf("%s: %s", resp.Status, body)}
	}
	return resp, nil
}

func (c Call) network() string { return cmp.Or(c.Network, "tcp") }

func (c Call) host() string {
	if c.Host != "" && c.Host != "-" {
		return c.Host
	}
	host, _, err := net.SplitHostPort(c.Address)
	switch {
	case err != nil:
		return c.Address
	case strings.Contains(host, ":"): // RFC 3986, 3.2.2
		return "[" + host + "]"
	}
	return host
}

// echoed says a line that nobody takes for HTTP, and hears it again.
func echoed(w io.Writer, r *bufio.Reader) error {
	const line = "\x01 a line of text\n"
	if _, err := io.WriteString(w, line); err != nil {
		return err
	}
	got, err := r.ReadString('\n')
	if err == nil && got != line {
		return fmt.Errorf("heard %.60q", got)
	}
	return err
}

func (c Call) openHTTP2(ctx context.Context) (*session, error) {
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) }}
	client := &http.Client{Transport: transport}
	s := &session{end: transport.CloseIdleConnections}
	if c.Kind == HTTP2 {
		client.Timeout = limit
		s.exchange = func() error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.Address+"/", nil)
			if err != nil {
				return err
			}
			req.Host = c.host()
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s", resp.Status)
			}
			s.heard = &Heard{}
			return json.NewDecoder(resp.Body).Decode(s.heard)
		}
		return s, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	in, out := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.Address+"/stream", in)
	if err != nil {
		cancel()
		return nil, err
	}
	req.Host = c.host()
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	overdue := time.AfterFunc(limit, cancel)
	resp, err := client.Do(req)
	if err != nil {
		cancel()
		return nil, err
	}
	overdue.Stop()
	if resp.StatusCode != http.StatusOK || strings.HasPrefix(resp.Header.Get("Grpc-Status"), "1") {
		cancel()
		return nil, fmt.Errorf("%s, gRPC status %q", resp.Status, resp.Header.Get("Grpc-Status"))
	}
	s.heard = &Heard{Peer: resp.Header.Get("X-Peer")}
	body := bufio.NewReader(resp.Body)
	s.exchange = func() error {
		overdue := time.AfterFunc(limit, cancel)
		defer overdue.Stop()
		return echoed(out, body)
	}
	s.end = func() { cancel(); _ = out.Close(); _ = resp.Body.Close(); transport.CloseIdleConnections() }
	return s, nil
}
