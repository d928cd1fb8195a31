// Package health is the plain-HTTP server that every component has on the monitoring port: /metrics, /healthz and
// /readyz, and nothing else.
package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Check returns why a component is not well, nil when it is. It must return at once.
type Check func() error

// Server answers for one component. The zero value is not usable; see New.
type Server struct {
	metrics http.Handler
	mu      sync.Mutex
	live    map[string]Check
	ready   map[string]Check
}

// New returns a server of the metrics that gatherer has.
func New(gatherer prometheus.Gatherer) *Server {
	return &Server{
		// One metric that cannot be collected must not hide the others, on which alerts depend.
		metrics: promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}),
		live:    map[string]Check{},
		ready:   map[string]Check{},
	}
}

// AddLive adds a reason to be restarted.
func (s *Server) AddLive(name string, check Check) { s.add(s.live, name, check) }

// AddReady adds a reason not to be sent traffic.
func (s *Server) AddReady(name string, check Check) { s.add(s.ready, name, check) }

func (s *Server) add(to map[string]Check, name string, check Check) {
	s.mu.Lock()
	defer s.mu.Unlock()
	to[name] = check
}

// Handler returns the server's handler.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { s.answer(w, s.live) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { s.answer(w, s.ready) })
	return mux
}

func (s *Server) answer(w http.ResponseWriter, checks map[string]Check) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, check := range checks {
		if err := check(); err != nil {
			http.Error(w, fmt.Sprintf("%s: %v", name, err), http.StatusServiceUnavailable)
			return
		}
	}
	fmt.Fprintln(w, "ok")
}

// Serve listens on addr until ctx ends.
func (s *Server) Serve(ctx context.Context, addr string) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("monitoring server: %w", err)
	}
	srv := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("monitoring server: %w", err)
	}
	return nil
}
