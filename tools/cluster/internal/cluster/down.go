package cluster

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/cgroup"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/state"
)

const removeLimit = 30 * time.Second

// Down removes the cluster without a trace. It is no error when there is none.
func (c *Cluster) Down(ctx context.Context) error {
	unlock, err := c.dir.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.remove(ctx); err != nil {
		return err
	}
	if err := c.dir.Forget(); err != nil {
		return err
	}
	c.log.Note("nothing left of cluster %s", c.dir.Name)
	return nil
}

// remove ends all processes; with the last one in them the namespaces go, and with those interfaces, mounts and nftables.
// It does not ask nicely: no data outlives the cluster.
func (c *Cluster) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, removeLimit)
	defer cancel()
	record, err := c.dir.Load()
	if err != nil {
		return err
	}
	if boot, err := state.BootID(); err == nil && boot == record.Boot {
		for _, process := range record.Processes {
			process.Kill()
		}
	}
	// What is not on record (containers, their shims, leftovers of a crash) is in the control groups.
	tree, err := cgroup.Open(c.tree())
	if err != nil {
		return err
	}
	if err := tree.Remove(ctx); err != nil {
		return err
	}
	if !c.dir.Others() {
		for _, dir := range slices.Backward(record.MadeDirs) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
				c.log.Note("left on the machine: %v", err)
			}
		}
	}
	return c.dir.Remove()
}
