// Command images builds the product's container images as archives, without a container engine, and pushes them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/tools/envoy"
	"github.com/bulwark-mesh/bulwark/tools/images"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	opts := images.Options{Log: func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }}
	root := &cobra.Command{Use: "images", Short: "The product's container images", SilenceUsage: true, SilenceErrors: true}
	flags := root.PersistentFlags()
	flags.StringVar(&opts.Version, "version", "dev", "tag of the images")
	flags.StringVar(&opts.Bin, "bin", "bin", "directory of the binaries")
	flags.StringVar(&opts.Out, "out", "bin/oci", "directory of the archives")
	flags.StringSliceVar(&opts.Only, "only", nil, "images to handle (default all: "+strings.Join(images.Names(), ",")+")")

	build := &cobra.Command{
		Use: "build", Short: "Build the archives whose inputs have changed", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return images.Build(cmd.Context(), opts) },
	}
	build.Flags().BoolVar(&opts.Compress, "compress", false, "compress layers (for a registry; to a local cluster it costs more than it saves)")

	var registry string
	push := &cobra.Command{
		Use: "push", Short: "Push built archives to a registry", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return images.Push(cmd.Context(), registry, opts) },
	}
	push.Flags().StringVar(&registry, "registry", "", "registry, and path in it, to push to")
	if err := push.MarkFlagRequired("registry"); err != nil {
		panic(err) // a flag defined on the line above
	}

	envoyPath := &cobra.Command{
		Use: "envoy-path", Short: "Print the path of Envoy, getting the pinned release if there is no other", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, err := envoy.Path(cmd.Context())
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), path)
			}
			return err
		},
	}
	root.AddCommand(build, push, envoyPath, applications(opts.Log))
	return root
}

func applications(log func(string, ...any)) *cobra.Command {
	opts := images.ApplicationsOptions{Log: log}
	cmd := &cobra.Command{
		Use: "applications", Short: "Build the image of real programs for their tests, and print its tag", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.Cache == "" {
				var err error
				if opts.Cache, err = envoy.Cache(); err != nil {
					return err
				}
			}
			tag, err := images.Applications(cmd.Context(), opts)
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), tag)
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.Packages, "packages", "e2e/applications/packages", "file with the Debian packages, one a line")
	flags.StringSliceVar(&opts.Binaries, "binaries", nil, "programs besides the packages")
	flags.StringVar(&opts.Cache, "cache", "", "directory where the root file system is kept (default $BULWARK_CACHE, or ~/.cache/bulwark)")
	flags.StringVar(&opts.Archive, "archive", "bin/applications/image.tar", "archive to write")
	return cmd
}
