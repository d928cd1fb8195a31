package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

// Ports of the application that notes what it is asked.
const (
	AskedHTTP  = 8080
	AskedHTTPS = 8443
	AskedGRPC  = 7000
	AskedTCP   = 9000
)

// Asked is a request, or a connection to the port that has none: a line of the application's log.
type Asked struct {
	Port    int      `json:"port"`
	First   string   `json:"first,omitempty"` // line of the request, or the called service
	Host    string   `json:"host,omitempty"`
	Headers []string `json:"headers,omitempty"` // in order of the alphabet
	Bytes   string   `json:"bytes,omitempty"`   // that came over a connection
}

// AskedServer returns the subcommand that answers as kubelet's probes and hooks may find an application, and logs what it is asked, and by which connections.
func AskedServer() *cobra.Command {
	return &cobra.Command{Use: "asked", RunE: func(cmd *cobra.Command, _ []string) error { return serveAsked(cmd.Context()) }}
}

func serveAsked(ctx context.Context) error {
	certificate, err := selfSigned()
	if err != nil {
		return err
	}
	log := &askedLog{}
	open := func(port int) (net.Listener, error) {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprint(":", port))
		if err == nil {
			context.AfterFunc(ctx, func() { _ = l.Close() })
		}
		return l, err
	}
	for _, port := range []int{AskedHTTP, AskedHTTPS} {
		l, err := open(port)
		if err != nil {
			return err
		}
		server := &http.Server{Handler: log.web(port), ReadHeaderTimeout: forever, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}}
		if port == AskedHTTPS {
			go func() { _ = server.ServeTLS(l, "", "") }() // ends with the listener
		} else {
			go func() { _ = server.Serve(l) }()
		}
	}
	calls, err := open(AskedGRPC)
	if err != nil {
		return err
	}
	rpc := grpc.NewServer()
	healthv1.RegisterHealthServer(rpc, askedHealth{log: log})
	go func() { _ = rpc.Serve(calls) }()
	l, err := open(AskedTCP)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			var read bytes.Buffer
			_, _ = read.ReadFrom(conn) // until the other side closes
			log.write(Asked{Port: AskedTCP, Bytes: read.String()})
		}()
	}
}

// askedLog writes one line for each.
type askedLog struct{ mu sync.Mutex }

func (l *askedLog) write(a Asked) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(a)
}

func (l *askedLog) web(port int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.write(Asked{Port: port, First: r.Method + " " + r.RequestURI + " " + r.Proto, Host: r.Host, Headers: sorted(r.Header)})
		n, _ := strconv.Atoi(r.URL.Query().Get("n"))
		switch r.URL.Path {
		case "/status":
			w.WriteHeader(n)
		case "/headers":
			for i := range n {
				w.Header().Set(fmt.Sprintf("X-Header-%d", i), strings.Repeat("v", 100))
			}
		case "/slow":
			time.Sleep(time.Duration(n) * time.Second)
		case "/redirect":
			http.Redirect(w, r, "redirected?from=path", http.StatusFound)
		case "/redirect-https":
			host, _, _ := net.SplitHostPort(r.Host)
			http.Redirect(w, r, "https://"+net.JoinHostPort(host, strconv.Itoa(AskedHTTPS))+"/redirected?from=http", http.StatusMovedPermanently)
		case "/redirect-away":
			http.Redirect(w, r, "https://shop.example.com/", http.StatusFound)
		}
	})
}

func sorted(headers map[string][]string) (out []string) {
	for name, values := range headers {
		for _, v := range values {
			out = append(out, name+": "+v)
		}
	}
	slices.Sort(out)
	return out
}

type askedHealth struct {
	healthv1.UnimplementedHealthServer
	log *askedLog
}

func (h askedHealth) Check(ctx context.Context, r *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	host := strings.Join(md[":authority"], ",")
	delete(md, ":authority")
	h.log.write(Asked{Port: AskedGRPC, First: r.GetService(), Host: host, Headers: sorted(md)})
	switch r.GetService() {
	case "slow":
		time.Sleep(2500 * time.Millisecond)
	case "down":
		return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_NOT_SERVING}, nil
	}
	return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_SERVING}, nil
}
