package sample

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

// Change is a moment at which the outcome of requests became another.
type Change struct {
	At      time.Time `json:"at"`
	Outcome string    `json:"outcome"`
}

// LoadResult is what Load and TCPLoad print.
type LoadResult struct {
	Requests int            `json:"requests"`
	Outcomes map[string]int `json:"outcomes"` // status code, or "error"
	Changes  []Change       `json:"changes"`  // of the first worker, beginning with its first request
	Errors   []string       `json:"errors,omitempty"`
}

// Load returns the subcommand that makes requests without pause. In the URL, {n} is replaced by the number of the request.
// It writes a line to standard error after its first request.
func Load() *cobra.Command {
	var http2 bool
	cmd := loading("load URL", func(url string, newConnections bool) (ask, func()) {
		c := client(http2, !newConnections)
		return func(ctx context.Context, n int) (string, string) {
			r := do(ctx, c, http.MethodGet, strings.ReplaceAll(url, "{n}", fmt.Sprint(n)))
			if r.Error != "" {
				return "error", r.Error
			}
			return fmt.Sprint(r.Status), r.Body
		}, c.CloseIdleConnections
	})
	cmd.Flags().BoolVar(&http2, "http2", false, "HTTP/2 with prior knowledge")
	return cmd
}

// TCPLoad returns the subcommand that does with lines to the ledger what Load does with requests. An answer has the outcome
// "200".
func TCPLoad() *cobra.Command {
	return loading("tcpload ADDRESS", func(address string, newConnections bool) (ask, func()) {
		l := &ledger{address: address}
		return func(ctx context.Context, _ int) (string, string) {
			_, err := l.ask(ctx)
			if newConnections || err != nil {
				l.hangUp()
			}
			if err != nil {
				return "error", err.Error()
			}
			return "200", ""
		}, l.hangUp
	})
}

// ask makes the nth request, and returns its outcome and what was said besides.
type ask func(ctx context.Context, n int) (outcome, text string)

// pace is how requests are made.
type pace struct {
	duration, interval time.Duration
	workers            int
	attended           bool
}

// loading is a subcommand that makes requests. Each worker has a client, that is, what asks and what ends it.
func loading(use string, client func(target string, newConnections bool) (ask, func())) *cobra.Command {
	var p pace
	var newConnections bool
	cmd := &cobra.Command{Use: use, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return json.NewEncoder(os.Stdout).Encode(p.load(cmd.Context(), func() (ask, func()) { return client(args[0], newConnections) }))
	}}
	cmd.Flags().DurationVar(&p.duration, "duration", 10*time.Second, "how long")
	cmd.Flags().BoolVar(&p.attended, "attended", false, "print each change when it comes, and end when standard input does")
	cmd.Flags().DurationVar(&p.interval, "interval", 10*time.Millisecond, "between the requests of a worker")
	cmd.Flags().BoolVar(&newConnections, "new-connections", false, "a connection for each request")
	cmd.Flags().IntVar(&p.workers, "workers", 1, "how many at a time")
	return cmd
}

func (p pace) load(ctx context.Context, client func() (ask, func())) LoadResult {
	ctx, end := context.WithTimeout(ctx, p.duration)
	defer end()
	tell := json.NewEncoder(os.Stdout)
	if p.attended {
		go func() { // ends with the process, if nobody ends its input
			_, _ = io.Copy(io.Discard, os.Stdin)
			end()
		}()
	}
	result := LoadResult{Outcomes: map[string]int{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for worker := range p.workers {
		wg.Go(func() {
			ask, hangUp := client()
			defer hangUp()
			tick := time.NewTicker(p.interval)
			defer tick.Stop()
			last := ""
			for ctx.Err() == nil {
				mu.Lock()
				n := result.Requests
				result.Requests++
				mu.Unlock()
				// A request that has begun is finished: the end of the test is not a failure.
				outcome, text := ask(context.WithoutCancel(ctx), n)
				mu.Lock()
				result.Outcomes[outcome]++
				if worker == 0 && last == "" {
					fmt.Fprintln(os.Stderr, "first outcome:", outcome)
				}
				if outcome != last && worker == 0 {
					change := Change{time.Now(), outcome}
					result.Changes = append(result.Changes, change)
					last = outcome
					if p.attended && tell.Encode(change) != nil {
						end()
					}
				}
				if outcome != "200" && text != "" && len(result.Errors) < 5 {
					result.Errors = append(result.Errors, text)
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
