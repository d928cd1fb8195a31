package node

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// keeping runs a keeper until the test ends.
func keeping(t *testing.T, n Node) (k *Keeper, end func() error) {
	t.Helper()
	k = &Keeper{Node: n, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	ended := false
	end = func() error {
		if ended {
			return nil
		}
		ended = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { _ = end() })
	return k, end
}

// comes waits until a condition holds.
func comes(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestTheKeeperPutsThePluginBack(t *testing.T) {
	n := aNode(t, nil)
	k, end := keeping(t, n)
	if err := k.Ready(); err == nil {
		t.Error("ready without any configuration")
	}
	conf := filepath.Join(n.ConfDir, "10-calico.conflist")
	put(t, conf, calico)
	comes(t, "in the first configuration", func() bool { return n.Installed() == nil })
	if err := k.Ready(); err == nil || !strings.Contains(err.Error(), "still has to read") {
		t.Errorf("ready at once: %v", err)
	}
	comes(t, "ready", func() bool { return k.Ready() == nil })
	put(t, conf, flannel) // as many do: not atomically
	if err := k.Ready(); err == nil {
		t.Error("ready, though the configuration was replaced")
	}
	comes(t, "in the new configuration", func() bool { return n.Installed() == nil })
	if err := os.Remove(n.target()); err != nil {
		t.Fatal(err)
	}
	comes(t, "the program is there again", func() bool { return n.Installed() == nil })
	if err := end(); err != nil {
		t.Error(err)
	}
	if err := n.Installed(); err != nil {
		t.Errorf("a keeper that ends takes the plugin with it: %v", err)
	}
}

// Cilium takes out what it has not written. The reason is said, and no pod is let start on the strength of one moment.
func TestAFightIsSaid(t *testing.T) {
	n := aNode(t, map[string]string{"05-cilium.conflist": flannel})
	k, _ := keeping(t, n)
	conf := filepath.Join(n.ConfDir, "05-cilium.conflist")
	comes(t, "the fight is said", func() bool {
		if n.Installed() == nil {
			if err := k.Ready(); err == nil {
				t.Fatal("ready in the middle of the fight")
			} else if strings.Contains(err.Error(), "cni.exclusive=false") {
				return true
			}
			put(t, conf, flannel)
		}
		return false
	})
}

// A container that mounts a directory which was removed would look at the old one for ever.
func TestADirectoryThatWasReplacedEndsTheKeeper(t *testing.T) {
	n := aNode(t, map[string]string{"10-calico.conflist": calico})
	k := &Keeper{Node: n, Log: slog.New(slog.DiscardHandler)}
	if err := k.replaced(); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(n.ConfDir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := os.RemoveAll(n.ConfDir); err != nil {
		t.Fatal(err)
	}
	k.ConfDir = fmt.Sprintf("/proc/self/fd/%d", dir.Fd()) // which is seen as a mount is
	if err := k.replaced(); err == nil || !strings.Contains(err.Error(), "was removed") {
		t.Errorf("%v", err)
	}
}
