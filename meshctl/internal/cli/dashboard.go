package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) dashboard() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use: "dashboard", Short: "Open the dashboard on this machine", Args: cobra.NoArgs,
		Long: "Serves Mixer's dashboard on a local address, over a port-forward, with your Kubernetes credentials.\nEverybody who can reach the address sees it, so it is loopback by default. Ends with Ctrl-C.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			conn, err := a.toMixer(ctx)
			if err != nil {
				return err
			}
			defer conn.Close()
			listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
			if err != nil {
				return fmt.Errorf("--address %s: %w", address, err)
			}
			host := listener.Addr().String()
			proxy := &httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}, Transport: conn, FlushInterval: -1}
			server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: onlyHost(host, proxy)}
			stop := context.AfterFunc(ctx, func() { _ = server.Close() })
			defer stop()
			a.out.Line("dashboard: http://%s/ (Ctrl-C ends)", host)
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&address, "address", "127.0.0.1:15080", "local address to listen on")
	return cmd
}

// onlyHost refuses requests that a page of another site makes a browser send here by a name of its own (DNS rebinding).
func onlyHost(host string, next http.Handler) http.Handler {
	_, port, _ := net.SplitHostPort(host)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != host && r.Host != "localhost:"+port {
			http.Error(w, "open http://"+host+"/", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}
