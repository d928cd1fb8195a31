package cluster

import (
	"context"
	"fmt"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/addons"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/host"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/kube"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/kubeapi"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/network"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/state"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/volumes"
)

// DefaultNodes is enough to test what needs two.
const DefaultNodes = 2

// healthTimeout bounds the look at a cluster that is said to run.
const healthTimeout = 5 * time.Second

// Up makes the cluster, or finds it running and healthy. Nodes of 0 means as many as there are, or the default.
func (c *Cluster) Up(ctx context.Context, nodes int, families network.Families) error {
	if nodes < 0 || nodes > kube.MaxNodes {
		return fmt.Errorf("%d nodes: want 1 to %d", nodes, kube.MaxNodes)
	}
	unlock, err := c.dir.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	record, err := c.dir.Load()
	if err != nil {
		return err
	}
	reused, err := c.reuse(ctx, record, nodes, families)
	if reused || err != nil {
		return err
	}
	if err := c.remove(ctx); err != nil {
		return fmt.Errorf("remove what an earlier cluster left: %w", err)
	}
	if missing := host.Missing(); len(missing) > 0 {
		c.log.Note("installing %v", missing)
		if err := host.Install(ctx, missing); err != nil {
			return fmt.Errorf("install packages: %w", err)
		}
	}
	set, err := c.cache.Ensure(ctx)
	if err != nil {
		return err
	}
	if nodes == 0 {
		nodes = DefaultNodes
	}
	return c.create(ctx, c.plan(set, nodes, families))
}

// reuse takes the cluster as it is, if it is what is wanted and all is well with it.
func (c *Cluster) reuse(ctx context.Context, record state.Record, nodes int, families network.Families) (bool, error) {
	if len(record.Nodes) == 0 {
		return false, nil
	}
	if !record.Ready {
		c.log.Note("an earlier `up` did not finish: starting over")
		return false, nil
	}
	if ok, why := record.Alive(); !ok {
		c.log.Note("the cluster is not whole (%s): starting over", why)
		return false, nil
	}
	set, err := c.cache.Locate()
	if err != nil {
		return false, err
	}
	spec, err := c.plan(set, len(record.Nodes), families).Fingerprint(addons.Fingerprint())
	if err != nil {
		return false, err
	}
	if spec != record.Spec {
		c.log.Note("the cluster was made from other versions or settings: starting over")
		return false, nil
	}
	if nodes != 0 && nodes != len(record.Nodes) {
		return false, fmt.Errorf("the cluster is up with %d nodes; for %d run `cluster down` first", len(record.Nodes), nodes)
	}
	admin, err := c.admin()
	if err != nil {
		return false, err
	}
	client, err := admin.Client(server(record.Port))
	if err != nil {
		return false, err
	}
	if err := poll(ctx, healthTimeout, "the running cluster", func(ctx context.Context) error {
		return healthy(ctx, client, nodeNames(record))
	}); err != nil {
		c.log.Note("the cluster is not healthy (%v): starting over", err)
		return false, ctx.Err()
	}
	if err := c.ensureVolumes(ctx, client); err != nil {
		return false, err
	}
	path, err := c.writeKubeconfig(record, admin)
	if err != nil {
		return false, err
	}
	c.log.Note("%d nodes are up; kubeconfig: %s", len(record.Nodes), path)
	return true, nil
}

func healthy(ctx context.Context, client *kubeapi.Client, nodes []string) error {
	if err := client.Healthy(ctx); err != nil {
		return err
	}
	if err := client.NodesReady(ctx, nodes); err != nil {
		return err
	}
	return client.DeploymentReady(ctx, "kube-system", "coredns")
}

func nodeNames(record state.Record) []string {
	var names []string
	for _, node := range record.Nodes {
		names = append(names, node.Name)
	}
	return names
}

// ensureVolumes gives the first node its local volumes.
func (c *Cluster) ensureVolumes(ctx context.Context, client *kubeapi.Client) error {
	first := kube.Plan{Root: c.dir.Path}.NodeDir(kube.Node{Name: "node1"}, "bulwark")
	return volumes.Ensure(ctx, client, "node1", first)
}
