// Package sample is the workloads of the demo: each is a subcommand that prints what it saw as JSON.
package sample

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// Answer is the body of every response; Server tells which workload answered.
type Answer struct {
	Server string `json:"server"`
	Method string `json:"method"`
	Path   string `json:"path"`
	Proto  string `json:"proto"`
}

// Server returns the subcommand that serves HTTP/1.1 and cleartext HTTP/2 on one port, gRPC (the standard health service) on
// another, and on a third a TCP protocol that answers each line with the server's name and the line. A request for /wait/DURATION is answered after
// that; a server that is told to end still answers what is on its way.
func Server() *cobra.Command {
	var name, httpAddress, tcpAddress, grpcAddress string
	cmd := &cobra.Command{Use: "server", Short: "Serve accounts and a ledger", RunE: func(cmd *cobra.Command, _ []string) error {
		return serve(cmd.Context(), name, httpAddress, tcpAddress, grpcAddress)
	}}
	cmd.Flags().StringVar(&name, "name", "sample", "who is said to answer")
	cmd.Flags().StringVar(&httpAddress, "http", ":8080", "HTTP address")
	cmd.Flags().StringVar(&tcpAddress, "tcp", ":9000", "TCP address")
	cmd.Flags().StringVar(&grpcAddress, "grpc", ":7000", "gRPC address")
	return cmd
}

func serve(ctx context.Context, name, httpAddress, tcpAddress, grpcAddress string) error {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if wait, ok := strings.CutPrefix(r.URL.Path, "/wait/"); ok {
			d, _ := time.ParseDuration(wait)
			select {
			case <-time.After(d):
			case <-r.Context().Done():
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(Answer{Server: name, Method: r.Method, Path: r.URL.Path, Proto: r.Proto})
	})
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Addr: httpAddress, Handler: handler, Protocols: protocols, ReadHeaderTimeout: 5 * time.Second}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", tcpAddress)
	if err != nil {
		return err
	}
	rpcListener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", grpcAddress)
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	rpc := grpc.NewServer()
	healthv1.RegisterHealthServer(rpc, health.NewServer())
	go func() { _ = rpc.Serve(rpcListener) }() // ends with Stop
	defer context.AfterFunc(ctx, func() {
		rpc.Stop()
		_ = listener.Close()
		_ = server.Shutdown(context.WithoutCancel(ctx)) // what is on its way is answered, as far as kubelet gives time
		close(ended)
	})()
	go func() { // ends with the listener
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go echo(conn, name)
		}
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-ended
	return nil
}

func echo(conn net.Conn, name string) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Hour))
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		fmt.Fprintf(conn, "%s: %s\n", name, lines.Text())
	}
}
