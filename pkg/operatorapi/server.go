// Package operatorapi is how an operator looks into a component: HTTPS with the component's own SVID, and a short-lived
// Kubernetes token of the service account bulwark-operator. Who may make such a token in Kubernetes
// (`create serviceaccounts/token`) may look; nobody else.
package operatorapi

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authclient "k8s.io/client-go/kubernetes/typed/authentication/v1"
	"k8s.io/utils/lru"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
)

// operatorUser is the name TokenReview gives the one account that may call.
const operatorUser = "system:serviceaccount:" + mesh.Namespace + ":" + mesh.OperatorAccount

const (
	reviewTimeout = 5 * time.Second
	reviewFor     = 10 * time.Second // how long an accepted token is believed without asking again
	reviewsKept   = 64

	// A token that nobody knows costs the API server a review and the log a line, and any stranger can make one up. What one
	// address does leaves another its share.
	reviewsASecond = 5
	reviewBurst    = 50
	addressesKept  = 1024
)

// errTooMany is why a token was not looked at.
var errTooMany = errors.New("too many tokens from this address; wait a little")

// Server guards the handlers of one component. See New.
type Server struct {
	mux     *http.ServeMux
	reviews authclient.TokenReviewInterface
	log     *slog.Logger

	mu       sync.Mutex
	accepted map[[32]byte]time.Time // hash of a token → until when it is believed
	callers  *lru.Cache             // a rate.Limiter of the reviews for each address
}

// New returns a server that has its callers' tokens reviewed by the API server.
func New(reviews authclient.TokenReviewInterface, log *slog.Logger) *Server {
	return &Server{mux: http.NewServeMux(), reviews: reviews, log: log, accepted: map[[32]byte]time.Time{}, callers: lru.New(addressesKept)}
}

// Handle adds a handler; the pattern is one of http.ServeMux.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// HandleJSON adds a handler that answers with what get returns, as JSON.
func (s *Server) HandleJSON(pattern string, get func(*http.Request) (any, error)) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		v, err := get(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(v); err != nil {
			s.log.Warn("answering the operator", "path", r.URL.Path, "error", err)
		}
	})
}

// ServeHTTP lets in who presents the operator's token.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" {
		http.Error(w, "a bearer token of "+operatorUser+" is needed", http.StatusUnauthorized)
		return
	}
	err := s.review(r.Context(), token, r.RemoteAddr)
	if errors.Is(err, errTooMany) {
		http.Error(w, err.Error(), http.StatusTooManyRequests)
		return
	}
	if err != nil {
		s.log.Warn("refused a call to the operator API", "path", r.URL.Path, "remote", r.RemoteAddr, "error", err)
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	s.mux.ServeHTTP(w, r)
}

func (s *Server) review(ctx context.Context, token, from string) error {
	key := sha256.Sum256([]byte(token))
	s.mu.Lock()
	until, known := s.accepted[key]
	s.mu.Unlock()
	if known && time.Now().Before(until) {
		return nil
	}
	if !s.mayAsk(from) {
		return errTooMany
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	got, err := s.reviews.Create(ctx, &authv1.TokenReview{
		Spec: authv1.TokenReviewSpec{Token: token, Audiences: []string{mesh.OperatorAudience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("reviewing the token: %w", err)
	}
	st := got.Status
	if !st.Authenticated || st.User.Username != operatorUser || !slices.Contains(st.Audiences, mesh.OperatorAudience) {
		return errors.New("the token is not one of " + operatorUser + " for the audience " + mesh.OperatorAudience)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.accepted) >= reviewsKept {
		clear(s.accepted)
	}
	s.accepted[key] = time.Now().Add(reviewFor)
	return nil
}

// mayAsk counts a review for an address.
func (s *Server) mayAsk(from string) bool {
	host := mtls.Host(from)
	s.mu.Lock()
	defer s.mu.Unlock()
	limiter, ok := s.callers.Get(host)
	if !ok {
		limiter = rate.NewLimiter(reviewsASecond, reviewBurst)
		s.callers.Add(host, limiter)
	}
	return limiter.(*rate.Limiter).Allow()
}

// Serve listens on addr with the component's TLS configuration until ctx ends.
func (s *Server) Serve(ctx context.Context, addr string, config *tls.Config) error {
	l, err := mtls.Listen(ctx, addr)
	if err != nil {
		return fmt.Errorf("operator API: %w", err)
	}
	config = config.Clone()
	config.NextProtos = []string{"http/1.1"}
	srv := &http.Server{
		Handler: s, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(tls.NewListener(l, config)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("operator API: %w", err)
	}
	return nil
}
