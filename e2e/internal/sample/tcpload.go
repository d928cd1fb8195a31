package sample

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

// TCPLoad returns the subcommand that sends lines to the ledger and reads the answers, over one connection for each
// worker or over a new one for each line. An answer is a request with the outcome "200", as it is for Load.
func TCPLoad() *cobra.Command {
	var duration, interval time.Duration
	var newConnections bool
	var workers int
	cmd := &cobra.Command{Use: "tcpload ADDRESS", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), duration)
		defer cancel()
		return json.NewEncoder(os.Stdout).Encode(tcpLoad(ctx, args[0], workers, interval, newConnections))
	}}
	cmd.Flags().DurationVar(&duration, "duration", 10*time.Second, "how long")
	cmd.Flags().DurationVar(&interval, "interval", 10*time.Millisecond, "between the lines of a worker")
	cmd.Flags().BoolVar(&newConnections, "new-connections", false, "a connection for each line")
	cmd.Flags().IntVar(&workers, "workers", 1, "how many at a time")
	return cmd
}

func tcpLoad(ctx context.Context, address string, workers int, interval time.Duration, newConnections bool) LoadResult {
	result := LoadResult{Outcomes: map[string]int{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			l := ledger{address: address}
			defer l.hangUp()
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for ctx.Err() == nil {
				err := l.ask(context.WithoutCancel(ctx))
				if newConnections || err != nil {
					l.hangUp()
				}
				mu.Lock()
				result.Requests++
				if err == nil {
					result.Outcomes["200"]++
				} else {
					result.Outcomes["error"]++
					if len(result.Errors) < 5 {
						result.Errors = append(result.Errors, err.Error())
					}
				}
				mu.Unlock()
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	wg.Wait()
	return result
}

// ledger is a connection to the ledger, made when it is needed.
type ledger struct {
	address string
	conn    net.Conn
	lines   *bufio.Reader
}

func (l *ledger) ask(ctx context.Context) error {
	if l.conn == nil {
		conn, err := (&net.Dialer{Timeout: requestTimeout}).DialContext(ctx, "tcp", l.address)
		if err != nil {
			return err
		}
		l.conn, l.lines = conn, bufio.NewReader(conn)
	}
	if err := l.conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(l.conn, "balance?"); err != nil {
		return err
	}
	if _, err := l.lines.ReadString('\n'); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	return nil
}

func (l *ledger) hangUp() {
	if l.conn != nil {
		_ = l.conn.Close()
		l.conn = nil
	}
}
