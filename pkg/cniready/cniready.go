// Package cniready asks a node's keeper of Bulwark's CNI plugin, over a socket of the node, whether the plugin is in force there:
// 200, or 503 and why not. Nobody answers where there is no keeper.
package cniready

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

const (
	patience  = 5 * time.Second
	maxReason = 4 << 10
)

// Serve answers with what ready says until ctx ends, over a socket that only root can use.
func Serve(ctx context.Context, socket string, ready func() error) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("socket %s: %w", socket, err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("socket %s: %w", socket, err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("socket %s: %w", socket, err), l.Close())
	}
	server := &http.Server{
		ReadTimeout: patience, WriteTimeout: patience, IdleTimeout: patience, MaxHeaderBytes: 4 << 10,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if err := ready(); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
			}
		}),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("socket %s: %w", socket, err)
	}
	return nil
}

// Ask returns nil if the plugin is in force, and otherwise the reason.
func Ask(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://cni/", nil)
	if err != nil {
		return fmt.Errorf("asking the keeper of the CNI plugin: %w", err)
	}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return fmt.Errorf("the keeper of the CNI plugin does not answer: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode == http.StatusOK {
		return nil
	}
	reason, err := io.ReadAll(io.LimitReader(answer.Body, maxReason))
	if err != nil {
		return fmt.Errorf("the keeper of the CNI plugin does not answer: %w", err)
	}
	return errors.New(strings.TrimSpace(string(reason)))
}
