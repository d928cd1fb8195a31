package sample

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
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

func do(ctx context.Context, c *http.Client, method, url string, headers ...string) Response {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return Response{Error: err.Error()}
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ":")
		if req.Header.Add(name, strings.TrimSpace(value)); strings.EqualFold(name, "Host") {
			req.Host = strings.TrimSpace(value)
		}
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
	var timeout time.Duration
	var headers []string
	cmd := &cobra.Command{Use: "get URL", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		c := client(http2, false)
		c.Timeout = timeout
		for range count {
			if err := json.NewEncoder(os.Stdout).Encode(do(cmd.Context(), c, method, args[0], headers...)); err != nil {
				return err
			}
		}
		return nil
	}}
	cmd.Flags().StringVarP(&method, "method", "X", http.MethodGet, "method")
	cmd.Flags().BoolVar(&http2, "http2", false, "HTTP/2 with prior knowledge")
	cmd.Flags().IntVar(&count, "count", 1, "how many, each over a connection of its own")
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "header, NAME: VALUE")
	cmd.Flags().DurationVar(&timeout, "timeout", requestTimeout, "how long each may take")
	return cmd
}
