package cniready

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTheReasonArrives(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	if err := Ask(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("nobody there: %v", err)
	}
	if err := os.WriteFile(socket, nil, 0o644); err != nil { // what a keeper that was killed has left
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var ready error = errors.New("not in force")
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, socket, func() error { return ready }) }()
	err := Ask(t.Context(), socket)
	for deadline := time.Now().Add(10 * time.Second); err != nil && strings.Contains(err.Error(), "does not answer") && time.Now().Before(deadline); {
		err = Ask(t.Context(), socket)
	}
	if err == nil || err.Error() != "not in force" {
		t.Errorf("got %v", err)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: others than root can ask", info.Mode(), err)
	}
	ready = nil
	if err := Ask(t.Context(), socket); err != nil {
		t.Errorf("in force: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
