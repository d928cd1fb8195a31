// Package wire is a workload that speaks whatever its client speaks, on every port, and clients that speak each protocol, once or
// over connections that they keep open. Tests use it to see what a mesh does to connections that it should not touch.
package wire

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

const (
	forever = time.Hour // longer than any test
	beat    = 100 * time.Millisecond
)

// Heard is what the server says of a request: who, by the word of its proxy, the client is, what it asked for, and between which addresses it came.
type Heard struct {
	Peer  string `json:"peer,omitempty"` // SPIFFE ID
	Host  string `json:"host,omitempty"`
	Proto string `json:"proto"`
	From  string `json:"from,omitempty"` // of whoever made the connection: the server's proxy, if it has one
	At    string `json:"at,omitempty"`   // the server's own
}

// Server returns the subcommand that serves HTTP/1.0, HTTP/1.1, cleartext HTTP/2, WebSocket, TLS with a certificate of its
// own, gRPC's health service, and lines of text, all on each port.
func Server() *cobra.Command {
	var ports, first []string
	cmd := &cobra.Command{Use: "anything", RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), ports, first) }}
	cmd.Flags().StringSliceVar(&ports, "port", []string{"8080"}, "ports to listen on")
	cmd.Flags().StringSliceVar(&first, "greeting", nil, "ports at which the server speaks first, and then repeats lines")
	return cmd
}

func serve(ctx context.Context, ports, first []string) error {
	certificate, err := selfSigned()
	if err != nil {
		return err
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	rpc := grpc.NewServer()
	healthv1.RegisterHealthServer(rpc, health.NewServer())
	web := &http.Server{Handler: answer(rpc), Protocols: protocols, ReadHeaderTimeout: forever}
	accepted := &handed{conns: make(chan net.Conn), done: ctx.Done()}
	go func() { _ = web.Serve(accepted) }() // ends with Close
	defer context.AfterFunc(ctx, func() { _ = web.Close() })()
	failed := make(chan error, len(ports)+len(first))
	for _, port := range slices.Concat(ports, first) {
		handle := func(conn net.Conn) { take(conn, certificate, accepted) }
		if slices.Contains(first, port) {
			handle = greet
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", ":"+port)
		if err != nil {
			return err
		}
		defer context.AfterFunc(ctx, func() { _ = l.Close() })()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					failed <- err
					return
				}
				go handle(conn)
			}
		}()
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
}

// take finds out by the first bytes what a client speaks.
func take(conn net.Conn, certificate tls.Certificate, web *handed) {
	p := &peeked{Conn: conn, r: bufio.NewReader(conn)}
	first, err := p.r.Peek(1)
	if err != nil {
		_ = conn.Close()
		return
	}
	if first[0] == 0x16 { // a TLS handshake
		echo(tls.Server(p, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}))
		return
	}
	head, err := p.r.Peek(4)
	if err == nil && slices.Contains([]string{"GET ", "POST", "PUT ", "DELE", "HEAD", "OPTI", "PRI "}, string(head)) {
		web.hand(p)
		return
	}
	echo(p)
}

func echo(conn net.Conn) {
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if _, err := fmt.Fprintf(conn, "%s\n", lines.Text()); err != nil {
			return
		}
	}
}

// answer answers requests, those that are gRPC by a server of it.
func answer(rpc http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/grpc.") {
			rpc.ServeHTTP(w, r)
			return
		}
		answerHTTP(w, r)
	})
}

func answerHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/headers": // that have come
		_ = json.NewEncoder(w).Encode(r.Header)
	case strings.EqualFold(r.Header.Get("Upgrade"), "websocket"):
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Peer: "+peer(r)+"\r\n\r\n")
		_, _ = io.Copy(conn, buffered)
	case r.URL.Path == "/stream": // as a gRPC stream of both directions
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		w.Header().Set("X-Peer", peer(r))
		control := http.NewResponseController(w)
		_ = control.Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			if _, err := fmt.Fprintf(w, "%s\n", lines.Text()); err != nil || control.Flush() != nil {
				return
			}
		}
		w.Header().Set("Grpc-Status", "0")
	case r.URL.Path == "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		control := http.NewResponseController(w)
		tick := time.NewTicker(beat)
		defer tick.Stop()
		for {
			if _, err := io.WriteString(w, "data: beat\n\n"); err != nil || control.Flush() != nil {
				return
			}
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
		}
	default:
		_ = json.NewEncoder(w).Encode(Heard{Peer: peer(r), Host: r.Host, Proto: r.Proto, From: address(r.RemoteAddr), At: address(r.Context().Value(http.LocalAddrContextKey).(net.Addr).String())})
	}
}

// peer reads the client's identity from the header in which a server's proxy tells it.
func peer(r *http.Request) string {
	for _, element := range strings.Split(r.Header.Get("X-Forwarded-Client-Cert"), ";") {
		if id, ok := strings.CutPrefix(element, "URI="); ok {
			return id
		}
	}
	return ""
}

// address is an address without its port.
func address(of string) string {
	host, _, err := net.SplitHostPort(of)
	if err != nil {
		return of
	}
	return host
}

// handed is a listener of connections that were accepted elsewhere.
type handed struct {
	conns chan net.Conn
	done  <-chan struct{}
}

func (h *handed) hand(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		_ = c.Close()
	}
}

func (h *handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, errors.New("closed")
	}
}

func (h *handed) Close() error   { return nil }
func (h *handed) Addr() net.Addr { return &net.TCPAddr{} }

// peeked is a connection of which some bytes have been looked at.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.r.Read(b) }

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
