// Command sample is every workload of the demo and of the end-to-end tests: a server, clients, and an eavesdropper.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/e2e/internal/wire"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{Use: "sample", SilenceUsage: true, SilenceErrors: true}
	wait := &cobra.Command{Use: "wait", Short: "Do nothing until stopped", RunE: func(cmd *cobra.Command, _ []string) error {
		<-cmd.Context().Done()
		return nil
	}}
	root.AddCommand(wait, sample.Server(), sample.Issuer(), sample.Authorizer(), sample.Get(), sample.Load(), sample.TCP(), sample.TCPLoad(), sample.Open(), sample.TLS(), sample.Capture(), sample.RPC(),
		sample.SVID(), sample.SPIFFE(), sample.Files(), sample.Sockets(), sample.Certs(), sample.Outside(), wire.Server(), wire.AskedServer(), wire.Calls(), wire.Hold(), wire.Questions())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "sample:", err)
		os.Exit(1)
	}
}
