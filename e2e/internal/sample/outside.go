package sample

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

// Seen is what Outside answers: what it has seen of a request.
type Seen struct {
	Host string `json:"host"`
	Path string `json:"path"`
	Name string `json:"name,omitempty"` // by which the server was asked for over TLS; "-" if by none; empty: in plaintext
	Peer string `json:"peer,omitempty"` // URI of the client's certificate
}

// Outside returns the subcommand of a server that knows nothing of the mesh: HTTPS at one port, by a certificate that it is given, and plaintext at another.
func Outside() *cobra.Command {
	var cert, key, secured, plain string
	cmd := &cobra.Command{Use: "outside", Short: "Serve HTTPS and HTTP outside of the mesh", RunE: func(cmd *cobra.Command, _ []string) error {
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen := Seen{Host: r.Host, Path: r.URL.Path}
			if r.TLS != nil {
				if seen.Name = r.TLS.ServerName; seen.Name == "" {
					seen.Name = "-"
				}
				if len(r.TLS.PeerCertificates) > 0 {
					seen.Peer = fmt.Sprint(r.TLS.PeerCertificates[0].URIs)
				}
			}
			_ = json.NewEncoder(w).Encode(seen) // the client may have gone
		})
		errs := make(chan error, 2)
		for _, serve := range []func() error{
			func() error {
				return (&http.Server{Addr: secured, Handler: handler, ReadHeaderTimeout: time.Minute, TLSConfig: &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}}).ListenAndServeTLS(cert, key)
			},
			func() error {
				return (&http.Server{Addr: plain, Handler: handler, ReadHeaderTimeout: time.Minute}).ListenAndServe()
			},
		} {
			go func() { errs <- serve() }() // ends with the program
		}
		select {
		case err := <-errs:
			return err
		case <-cmd.Context().Done():
			return nil
		}
	}}
	cmd.Flags().StringVar(&cert, "cert", "/tls/tls.crt", "certificate")
	cmd.Flags().StringVar(&key, "key", "/tls/tls.key", "its key")
	cmd.Flags().StringVar(&secured, "https", ":8443", "address of HTTPS")
	cmd.Flags().StringVar(&plain, "http", ":8080", "address of HTTP")
	return cmd
}
