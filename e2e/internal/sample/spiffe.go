package sample

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// SPIFFE returns the subcommands of an application that has its identity from the SPIFFE Workload API, by the client that
// SPIFFE's users use as it is, and speaks mutual TLS without a proxy.
func SPIFFE() *cobra.Command {
	var socket string
	cmd := &cobra.Command{Use: "spiffe", Short: "Speak mutual TLS and carry tokens without a proxy"}
	cmd.PersistentFlags().StringVar(&socket, "socket", "/spiffe/agent.sock", "socket of the Workload API")
	cmd.AddCommand(spiffeServe(&socket), spiffeCall(&socket), spiffeJWT(&socket), spiffeValidate(&socket), spiffeBare(&socket))
	return cmd
}

func at(socket *string) workloadapi.ClientOption { return workloadapi.WithAddr("unix://" + *socket) }

func x509Source(ctx context.Context, socket *string) (*workloadapi.X509Source, error) {
	ctx, cancel := context.WithTimeout(ctx, 4*requestTimeout)
	defer cancel()
	return workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(at(socket)))
}

// SPIFFEAnswer is what the server answers: whom it saw.
type SPIFFEAnswer struct {
	Caller string `json:"caller"`
	Serial string `json:"serial"`
}

func spiffeServe(socket *string) *cobra.Command {
	var address string
	cmd := &cobra.Command{Use: "serve", RunE: func(cmd *cobra.Command, _ []string) error {
		source, err := x509Source(cmd.Context(), socket)
		if err != nil {
			return err
		}
		defer source.Close()
		own, err := source.GetX509SVID()
		if err != nil {
			return err
		}
		server := &http.Server{
			Addr: address, ReadHeaderTimeout: requestTimeout,
			TLSConfig: tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeMemberOf(own.ID.TrustDomain())),
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				peer := r.TLS.PeerCertificates[0]
				_ = json.NewEncoder(w).Encode(SPIFFEAnswer{peer.URIs[0].String(), peer.SerialNumber.Text(16)})
			}),
		}
		defer context.AfterFunc(cmd.Context(), func() { _ = server.Close() })()
		if err := server.ListenAndServeTLS("", ""); err != http.ErrServerClosed {
			return err
		}
		return nil
	}}
	cmd.Flags().StringVar(&address, "address", ":8443", "address")
	return cmd
}

// CallResult is what `spiffe call` prints.
type CallResult struct {
	Requests int      `json:"requests"`
	Errors   []string `json:"errors"`
	Caller   string   `json:"caller"`  // whom the server saw last
	Servers  []string `json:"servers"` // serial numbers of the server's certificates, in the order in which they were met
	Clients  []string `json:"clients"` // and of the client's
}

func spiffeCall(socket *string) *cobra.Command {
	var server string
	var duration, interval time.Duration
	var rotations int
	cmd := &cobra.Command{Use: "call URL", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		id, err := spiffeid.FromString(server)
		if err != nil {
			return err
		}
		source, err := x509Source(cmd.Context(), socket)
		if err != nil {
			return err
		}
		defer source.Close()
		client := &http.Client{Timeout: requestTimeout, Transport: &http.Transport{
			DisableKeepAlives: true, TLSClientConfig: tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id))}}
		ctx, cancel := context.WithTimeout(cmd.Context(), duration)
		defer cancel()
		tick := time.NewTicker(interval)
		defer tick.Stop()
		var out CallResult
		for ctx.Err() == nil {
			out.call(context.WithoutCancel(ctx), client, args[0])
			if len(out.Servers) > rotations && len(out.Clients) > rotations {
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
		return json.NewEncoder(os.Stdout).Encode(out)
	}}
	cmd.Flags().StringVar(&server, "server", "", "SPIFFE ID of the one server that is spoken to")
	cmd.Flags().DurationVar(&duration, "duration", requestTimeout, "how long at most")
	cmd.Flags().DurationVar(&interval, "interval", 20*time.Millisecond, "between requests")
	cmd.Flags().IntVar(&rotations, "rotations", 0, "end when both sides have had so many other certificates")
	return cmd
}

// call makes one request over a connection of its own.
func (r *CallResult) call(ctx context.Context, client *http.Client, url string) {
	r.Requests++
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		r.fail(err)
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		r.fail(err)
		return
	}
	defer resp.Body.Close()
	var answer SPIFFEAnswer
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		r.fail(err)
		return
	}
	r.Caller = answer.Caller
	note(&r.Servers, resp.TLS.PeerCertificates[0].SerialNumber.Text(16))
	note(&r.Clients, answer.Serial)
}

func (r *CallResult) fail(err error) { r.Errors = append(r.Errors, err.Error()) }

func note(list *[]string, one string) {
	if !slices.Contains(*list, one) {
		*list = append(*list, one)
	}
}

// JWTResult is what `spiffe jwt` prints.
type JWTResult struct {
	ID       string    `json:"id"`
	Token    string    `json:"token"`
	Audience []string  `json:"audience"`
	Expires  time.Time `json:"expires"`
}

func spiffeJWT(socket *string) *cobra.Command {
	return &cobra.Command{Use: "jwt AUDIENCE", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), 4*requestTimeout)
		defer cancel()
		source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(at(socket)))
		if err != nil {
			return err
		}
		defer source.Close()
		got, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: args[0]})
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(JWTResult{got.ID.String(), got.Marshal(), got.Audience, got.Expiry})
	}}
}

// ValidateResult is what `spiffe validate` prints: whose token it is, said by the Workload API and by the bundle.
type ValidateResult struct {
	ByAPI    string `json:"byAPI,omitempty"`
	ByBundle string `json:"byBundle,omitempty"`
	Code     string `json:"code"` // of the Workload API's answer
	Error    string `json:"error,omitempty"`
}

func spiffeValidate(socket *string) *cobra.Command {
	return &cobra.Command{Use: "validate AUDIENCE TOKEN", Args: cobra.ExactArgs(2), RunE: func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), 4*requestTimeout)
		defer cancel()
		source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(at(socket)))
		if err != nil {
			return err
		}
		defer source.Close()
		var out ValidateResult
		if got, err := jwtsvid.ParseAndValidate(args[1], source, []string{args[0]}); err == nil {
			out.ByBundle = got.ID.String()
		} else {
			out.Error = err.Error()
		}
		got, err := workloadapi.ValidateJWTSVID(ctx, args[1], args[0], at(socket))
		out.Code = status.Code(err).String()
		if err == nil {
			out.ByAPI = got.ID.String()
		}
		return json.NewEncoder(os.Stdout).Encode(out)
	}}
}

// spiffeBare calls every method of the Workload API without the security header and prints the code of each answer.
func spiffeBare(socket *string) *cobra.Command {
	return &cobra.Command{Use: "bare", RunE: func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), requestTimeout)
		defer cancel()
		conn, err := grpc.NewClient("unix://"+*socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer conn.Close()
		api := workload.NewSpiffeWorkloadAPIClient(conn)
		out := map[string]string{}
		for name, call := range map[string]func() error{
			"FetchX509SVID":    func() error { return first(api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})) },
			"FetchX509Bundles": func() error { return first(api.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})) },
			"FetchJWTBundles":  func() error { return first(api.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})) },
			"FetchJWTSVID": func() error {
				_, err := api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"anyone"}})
				return err
			},
			"ValidateJWTSVID": func() error {
				_, err := api.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "anyone", Svid: "a.b.c"})
				return err
			},
		} {
			out[name] = status.Code(call()).String()
		}
		return json.NewEncoder(os.Stdout).Encode(out)
	}}
}

// first reads the first message of a stream.
func first[T any](stream grpc.ServerStreamingClient[T], err error) error {
	if err != nil {
		return fmt.Errorf("opening the stream: %w", err)
	}
	_, err = stream.Recv()
	return err
}
