package cluster

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/kube"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/proc"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/state"
)

// Restart kills one of the cluster's processes, such as kube-apiserver, and starts it again as it was. It returns when the
// cluster is healthy.
func (c *Cluster) Restart(ctx context.Context, name string) error {
	unlock, err := c.dir.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	record, err := c.Running()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(record.Processes, func(p proc.Process) bool { return p.Name == name })
	if i < 0 {
		var names []string
		for _, p := range record.Processes {
			names = append(names, p.Name)
		}
		return fmt.Errorf("no process %q; there are %s", name, strings.Join(names, ", "))
	}
	old := record.Processes[i]
	node, err := nodeOf(record, old)
	if err != nil {
		return err
	}
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", old.PID))
	if err != nil {
		return fmt.Errorf("read the command line of %s: %w", name, err)
	}
	argv := strings.Split(strings.TrimSuffix(string(command), "\x00"), "\x00")
	old.Kill()
	if err := poll(ctx, startLimit, "the end of "+name, func(context.Context) error {
		if old.Alive() {
			return fmt.Errorf("process %d is still there", old.PID)
		}
		return nil
	}); err != nil {
		return err
	}
	record.Processes = slices.Delete(record.Processes, i, i+1)
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	r := &run{cluster: c, plan: c.plan(record.Binaries, len(record.Nodes), record.Families), self: self, record: record}
	began := time.Now()
	if err := r.start(node, kube.Program{Name: name, Argv: argv}); err != nil {
		return err
	}
	admin, err := c.admin()
	if err != nil {
		return err
	}
	client, err := admin.Client(server(record.Port))
	if err != nil {
		return err
	}
	if err := poll(ctx, startLimit, "the cluster", func(ctx context.Context) error { return healthy(ctx, client, nodeNames(record)) }); err != nil {
		return err
	}
	c.log.Note("%s is back after %.1f s", name, time.Since(began).Seconds())
	return nil
}

// nodeOf finds on which node a process runs, by its network namespace, which is that of the node's holder.
func nodeOf(record state.Record, process proc.Process) (state.Node, error) {
	network := func(pid int) (string, error) { return os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)) }
	own, err := network(process.PID)
	if err != nil {
		return state.Node{}, fmt.Errorf("find the node of %s: %w", process.Name, err)
	}
	for _, node := range record.Nodes {
		if held, err := network(node.Holder.PID); err == nil && held == own {
			return node, nil
		}
	}
	return state.Node{}, fmt.Errorf("process %q is of no node", process.Name)
}
