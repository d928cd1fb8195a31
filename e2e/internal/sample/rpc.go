package sample

import (
	"context"
	"encoding/json"
	"os"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// RPCResult is what RPC prints: a gRPC status code and, if it is not OK, its message.
type RPCResult struct {
	Code    string `json:"code"`
	Message string `json:"message,omitempty"`
	Serving bool   `json:"serving"`
}

// RPC returns the subcommand that calls grpc.health.v1.Health/Check once.
func RPC() *cobra.Command {
	return &cobra.Command{Use: "rpc ADDRESS", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), requestTimeout)
		defer cancel()
		conn, err := grpc.NewClient(args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer conn.Close()
		answer, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
		out := RPCResult{Code: status.Code(err).String(), Serving: answer.GetStatus() == healthv1.HealthCheckResponse_SERVING}
		if err != nil {
			out.Message = status.Convert(err).Message()
		}
		return json.NewEncoder(os.Stdout).Encode(out)
	}}
}

// SVIDResult is what SVID prints of the identity that the Workload API gave.
type SVIDResult struct {
	ID     string `json:"id"`
	Serial string `json:"serial"`
	Roots  int    `json:"roots"`
}

// SVID returns the subcommand that asks the SPIFFE Workload API who it is, with the client that SPIFFE's users use.
func SVID() *cobra.Command {
	return &cobra.Command{Use: "svid SOCKET", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), 4*requestTimeout)
		defer cancel()
		got, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr("unix://"+args[0]))
		if err != nil {
			return err
		}
		svid := got.DefaultSVID()
		bundle, err := got.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(SVIDResult{svid.ID.String(), svid.Certificates[0].SerialNumber.Text(16), len(bundle.X509Authorities())})
	}}
}
