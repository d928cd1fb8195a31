// Command kafka is a server of Kafka's protocol for the applications' tests, three brokers in one process. Its clients are real ones.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/twmb/franz-go/pkg/kfake"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Getenv("POD_IP")); err != nil {
		fmt.Fprintln(os.Stderr, "kafka:", err)
		os.Exit(1)
	}
}

// run serves at ports 9092 to 9094 of an address, which is also the one that clients are told.
func run(ctx context.Context, address string) error {
	if net.ParseIP(address) == nil {
		return fmt.Errorf("POD_IP is %q: want the address to listen at", address)
	}
	cluster, err := kfake.NewCluster(
		kfake.Ports(9092, 9093, 9094), kfake.AllowAutoTopicCreation(), kfake.DefaultNumPartitions(3),
		kfake.ListenFn(func(network, at string) (net.Listener, error) {
			_, port, err := net.SplitHostPort(at)
			if err != nil {
				return nil, err
			}
			return net.Listen(network, net.JoinHostPort(address, port))
		}),
	)
	if err != nil {
		return fmt.Errorf("serving at %s: %w", address, err)
	}
	defer cluster.Close()
	<-ctx.Done()
	return nil
}
