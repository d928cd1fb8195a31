package traffic

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func serveCommand() *cobra.Command {
	address := ":8080"
	cmd := &cobra.Command{Use: "serve", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		body := []byte(strings.Repeat("0123456789abcdef", 16))
		srv := &http.Server{Addr: address, ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(body)
		})}
		stop := context.AfterFunc(cmd.Context(), func() { _ = srv.Close() })
		defer stop()
		if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("server: %w", err)
		}
		return nil
	}}
	cmd.Flags().StringVar(&address, "address", address, "")
	return cmd
}
