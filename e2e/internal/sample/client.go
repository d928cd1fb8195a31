package sample

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

const (
	requestTimeout = 5 * time.Second
	maxBody        = 16 << 20 // a proxy's whole configuration
)

// Response is what Get prints: a status, or the error that kept one from coming.
type Response struct {
	Status int     `json:"status,omitempty"`
	Proto  string  `json:"proto,omitempty"`
	Answer *Answer `json:"answer,omitempty"`
	Body   string  `json:"body,omitempty"`
	Error  string  `json:"error,omitempty"`
}

func client(http2, keepAlive bool) *http.Client {
	protocols := &http.Protocols{}
	if http2 {
		protocols.SetUnencryptedHTTP2(true)
	} else {
		protocols.SetHTTP1(true)
	}
	return &http.Client{Timeout: requestTimeout, Transport: &http.Transport{Protocols: protocols, DisableKeepAlives: !keepAlive}}
}

func do(ctx context.Context, c *http.Client, method, url string) Response {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return Response{Error: err.Error()}
	}
	resp, err := c.Do(req)
	if err != nil {
		return Response{Error: err.Error()}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return Response{Error: err.Error()}
	}
	out := Response{Status: resp.StatusCode, Proto: resp.Proto}
	if json.Unmarshal(body, &out.Answer) != nil || out.Answer.Server == "" {
		out.Answer, out.Body = nil, strings.TrimSpace(string(body))
	}
	return out
}

// Get returns the subcommand that makes requests and prints each Response.
func Get() *cobra.Command {
	var method string
	var http2 bool
	var count int
	cmd := &cobra.Command{Use: "get URL", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		c := client(http2, false)
		for range count {
			if err := json.NewEncoder(os.Stdout).Encode(do(cmd.Context(), c, method, args[0])); err != nil {
				return err
			}
		}
		return nil
	}}
	cmd.Flags().StringVarP(&method, "method", "X", http.MethodGet, "method")
	cmd.Flags().BoolVar(&http2, "http2", false, "HTTP/2 with prior knowledge")
	cmd.Flags().IntVar(&count, "count", 1, "how many, each over a connection of its own")
	return cmd
}

// Change is a moment at which the outcome of requests became another.
type Change struct {
	At      time.Time `json:"at"`
	Outcome string    `json:"outcome"`
}

// LoadResult is what Load prints.
type LoadResult struct {
	Requests int            `json:"requests"`
	Outcomes map[string]int `json:"outcomes"` // status code, or "error"
	Changes  []Change       `json:"changes"`  // of the first worker, beginning with its first request
	Errors   []string       `json:"errors,omitempty"`
}

// Load returns the subcommand that makes requests without pause. In the URL, {n} is replaced by the number of the request.
// It writes a line to standard error after its first request.
func Load() *cobra.Command {
	var duration, interval time.Duration
	var http2, newConnections bool
	var workers int
	var until string
	cmd := &cobra.Command{Use: "load URL", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), duration)
		defer cancel()
		result := load(ctx, cancel, args[0], workers, interval, http2, newConnections, until)
		return json.NewEncoder(os.Stdout).Encode(result)
	}}
	cmd.Flags().DurationVar(&duration, "duration", 10*time.Second, "how long")
	cmd.Flags().StringVar(&until, "until", "", "end at the first request with this outcome, a status code or error")
	cmd.Flags().DurationVar(&interval, "interval", 10*time.Millisecond, "between the requests of a worker")
	cmd.Flags().BoolVar(&http2, "http2", false, "HTTP/2 with prior knowledge")
	cmd.Flags().BoolVar(&newConnections, "new-connections", false, "a connection for each request")
	cmd.Flags().IntVar(&workers, "workers", 1, "how many at a time")
	return cmd
}

func load(ctx context.Context, end func(), url string, workers int, interval time.Duration, http2, newConnections bool, until string) LoadResult {
	result := LoadResult{Outcomes: map[string]int{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			c := client(http2, !newConnections)
			tick := time.NewTicker(interval)
			defer tick.Stop()
			last := ""
			for ctx.Err() == nil {
				mu.Lock()
				n := result.Requests
				result.Requests++
				mu.Unlock()
				// A request that has begun is finished: the end of the test is not a failure.
				r := do(context.WithoutCancel(ctx), c, http.MethodGet, strings.ReplaceAll(url, "{n}", fmt.Sprint(n)))
				outcome := fmt.Sprint(r.Status)
				if r.Error != "" {
					outcome = "error"
				}
				mu.Lock()
				result.Outcomes[outcome]++
				if worker == 0 && last == "" {
					fmt.Fprintln(os.Stderr, "first outcome:", outcome)
				}
				if outcome == until {
					end()
				}
				if outcome != last && worker == 0 {
					result.Changes = append(result.Changes, Change{time.Now(), outcome})
					last = outcome
				}
				if text := r.Error + r.Body; outcome != "200" && text != "" && len(result.Errors) < 5 {
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

// TCPResult is what TCP prints.
type TCPResult struct {
	Answer string `json:"answer,omitempty"`
	Error  string `json:"error,omitempty"`
}

// TCP returns the subcommand that sends a line and reads the answer.
func TCP() *cobra.Command {
	return &cobra.Command{Use: "tcp ADDRESS", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		var out TCPResult
		if err := talk(cmd.Context(), args[0], &out); err != nil {
			out.Error = err.Error()
		}
		return json.NewEncoder(os.Stdout).Encode(out)
	}}
}

func talk(ctx context.Context, address string, out *TCPResult) error {
	conn, err := (&net.Dialer{Timeout: requestTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(conn, "balance?"); err != nil {
		return err
	}
	if out.Answer, err = bufio.NewReader(conn).ReadString('\n'); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	return nil
}
