package sample

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/spf13/cobra"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// Asked is what an authorizer has been asked.
type Asked struct {
	Times  int    `json:"times"`
	Client string `json:"client"` // of the last question: the URI of the client's certificate, as its server's proxy has it
	Path   string `json:"path"`   // of a connection: none
}

// Authorizer returns the subcommand that is an external authorizer, over gRPC and over HTTP: it allows requests whose header x-answer is yes, and has the application hear who
// said so in x-said; it answers others with 402. Of connections it allows all, until /close. /asked says what it has been asked.
func Authorizer() *cobra.Command {
	var overGRPC, overHTTP string
	cmd := &cobra.Command{Use: "authorizer", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		a := &authorizer{}
		listener, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", overGRPC)
		if err != nil {
			return fmt.Errorf("serving gRPC: %w", err)
		}
		rpc := grpc.NewServer()
		authv3.RegisterAuthorizationServer(rpc, a)
		mux := http.NewServeMux()
		mux.HandleFunc("/asked", func(w http.ResponseWriter, _ *http.Request) {
			a.mu.Lock()
			defer a.mu.Unlock()
			_ = json.NewEncoder(w).Encode(a.asked)
		})
		mux.HandleFunc("POST /close", func(http.ResponseWriter, *http.Request) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.closed = true
		})
		mux.HandleFunc("/check/", func(w http.ResponseWriter, r *http.Request) {
			a.hears("", r.URL.Path)
			w.Header().Set("X-Said", "http")
			if r.Header.Get("X-Answer") != "yes" {
				http.Error(w, "pay first", http.StatusPaymentRequired)
			}
		})
		mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
		srv := &http.Server{Addr: overHTTP, Handler: mux, ReadHeaderTimeout: requestTimeout}
		ended := make(chan error, 2)
		go func() { ended <- srv.ListenAndServe() }()
		go func() { ended <- rpc.Serve(listener) }()
		select {
		case err := <-ended:
			return fmt.Errorf("serving: %w", err)
		case <-cmd.Context().Done():
			rpc.Stop()
			return srv.Close()
		}
	}}
	cmd.Flags().StringVar(&overGRPC, "grpc", ":9191", "address of gRPC")
	cmd.Flags().StringVar(&overHTTP, "http", ":8080", "address of HTTP")
	return cmd
}

type authorizer struct {
	authv3.UnimplementedAuthorizationServer
	mu     sync.Mutex
	asked  Asked
	closed bool
}

func (a *authorizer) hears(client, path string) (closed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = Asked{a.asked.Times + 1, client, path}
	return a.closed
}

// Check implements Envoy's ext_authz.
func (a *authorizer) Check(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	h := r.GetAttributes().GetRequest().GetHttp()
	closed := a.hears(r.GetAttributes().GetSource().GetPrincipal(), h.GetPath())
	if h != nil && h.GetHeaders()["x-answer"] == "yes" || h == nil && !closed {
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.OK)}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*core.HeaderValueOption{{Header: &core.HeaderValue{Key: "x-said", Value: "grpc"}}}}}}, nil
	}
	return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.PermissionDenied)}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode_PaymentRequired}, Body: "pay first"}}}, nil
}
