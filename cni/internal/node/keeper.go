package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// Keeper has the plugin stay in force: whatever other programs do to the directories, it puts it back.
type Keeper struct {
	Node
	Log *slog.Logger

	mu      sync.Mutex
	changed time.Time // when something had to be put in place, last
	repairs int       // how often within one stretch without rest
}

const (
	// settle is how long the runtime is given to read a configuration that has just been written.
	settle = 2 * time.Second
	// lookAnyway is how often the directories are looked at though nothing is said to have happened in them.
	lookAnyway = 30 * time.Second
	// pause lets somebody who changes several files finish, and is how often another program that takes the plugin out again
	// is answered at most.
	pause = 200 * time.Millisecond
)

// Run keeps the plugin in force until ctx ends. It leaves it there.
func (k *Keeper) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching the node's CNI configuration: %w", err)
	}
	defer w.Close()
	for _, dir := range []string{k.ConfDir, k.BinDir} {
		if err := w.Add(dir); err != nil {
			return fmt.Errorf("watching %s: %w", dir, err)
		}
	}
	tick := time.NewTicker(lookAnyway)
	defer tick.Stop()
	var said string
	for {
		if err := k.replaced(); err != nil {
			return err
		}
		changed, err := k.Install()
		k.note(changed)
		switch {
		case err != nil && err.Error() != said:
			said = err.Error()
			k.Log.Warn("the plugin is not in force; pods with a proxy wait", "error", err)
		case err == nil && (changed || said != ""):
			said = ""
			k.Log.Info("the plugin is in the node's CNI configuration")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case _, ok := <-w.Events:
			if !ok {
				return errors.New("watching the node's CNI configuration: the watch has ended")
			}
			k.rest(ctx, w)
		case err := <-w.Errors:
			k.Log.Warn("watching the node's CNI configuration", "error", err) // what was missed is found by looking
		}
	}
}

// replaced is an error if a directory was removed on the node and perhaps made anew: a container that starts again has the new
// one, and this one sees the old one for ever.
func (k *Keeper) replaced() error {
	for _, dir := range []string{k.ConfDir, k.BinDir} {
		var info unix.Stat_t
		if err := unix.Stat(dir, &info); err != nil {
			return fmt.Errorf("looking at %s: %w", dir, err)
		}
		if info.Nlink == 0 {
			return fmt.Errorf("the node's directory that is mounted at %s was removed; ending, so that the next start finds the one that has replaced it", dir)
		}
	}
	return nil
}

// rest waits a little, and takes the events of that time as one.
func (k *Keeper) rest(ctx context.Context, w *fsnotify.Watcher) {
	done := time.NewTimer(pause)
	defer done.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-done.C:
			return
		case <-w.Events:
		}
	}
}

func (k *Keeper) note(changed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch now := time.Now(); {
	case !changed:
	case now.Sub(k.changed) < settle:
		k.changed, k.repairs = now, k.repairs+1
	default:
		k.changed, k.repairs = now, 1
	}
}

// Ready returns nil if the plugin is in force, as the directories are now, and the runtime has had the time to read so.
func (k *Keeper) Ready() error {
	if err := k.Installed(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.changed) >= settle {
		return nil
	}
	if k.repairs > 3 {
		return errors.New("another program of the node takes the plugin out of the CNI configuration again and again " +
			"(Cilium does unless it is installed with cni.exclusive=false)")
	}
	return errors.New("the plugin has just been put into the node's CNI configuration, which the container runtime still has to read")
}
