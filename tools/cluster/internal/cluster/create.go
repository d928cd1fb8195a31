package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/addons"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/kube"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/kubeapi"
)

// Limits of the steps of `up`, on a machine that is busy with other things too.
const (
	startLimit    = 60 * time.Second
	nodesLimit    = 90 * time.Second
	workloadLimit = 120 * time.Second
)

// preferredPort of the API server on the machine's loopback. Another is taken when it is not free.
const preferredPort = 16443

func (c *Cluster) create(ctx context.Context, plan kube.Plan) error {
	run, err := c.prepare(plan)
	if err != nil {
		return err
	}
	c.log.Note("certificates and configuration written")
	if err := run.startNamespaces(ctx); err != nil {
		return err
	}
	c.log.Note("%d nodes joined to the fabric", len(plan.Nodes))

	// The nodes' container runtimes start, and get their first images, while the API server does.
	admin, err := plan.WriteCertificates(time.Now())
	if err != nil {
		return err
	}
	port, err := run.startForwarder()
	if err != nil {
		return err
	}
	client, err := admin.Client(server(port))
	if err != nil {
		return err
	}
	group, both := errgroup.WithContext(ctx)
	group.Go(func() error { return run.startRuntimes(both) })
	group.Go(func() error { return run.startAPI(both, client) })
	if err := group.Wait(); err != nil {
		return err
	}
	if err := run.startRest(); err != nil {
		return err
	}
	if err := addons.Apply(ctx, client); err != nil {
		return err
	}
	if err := c.ensureVolumes(ctx, client); err != nil {
		return err
	}
	if err := c.awaitReady(ctx, run, client); err != nil {
		return err
	}
	run.record.Ready = true
	if err := c.dir.Save(run.record); err != nil {
		return err
	}
	path, err := c.writeKubeconfig(run.record, admin)
	if err != nil {
		return err
	}
	c.log.Note("up; kubeconfig: %s", path)
	return nil
}

// startAPI starts etcd, then the API server, and waits until it is ready.
func (r *run) startAPI(ctx context.Context, client *kubeapi.Client) error {
	programs := r.plan.ControlPlane()
	first := r.record.Nodes[0]
	if err := r.start(first, programs[0]); err != nil {
		return err
	}
	// Without waiting for etcd the API server would find it away once, and be slow to look again.
	if err := poll(ctx, startLimit, "etcd", func(ctx context.Context) error {
		conn, err := r.dialer.DialContext(ctx, "tcp", "127.0.0.1:2379")
		if err != nil {
			return err
		}
		return conn.Close()
	}); err != nil {
		return err
	}
	if err := r.start(first, programs[1]); err != nil {
		return err
	}
	if err := poll(ctx, startLimit, "the API server", client.Healthy); err != nil {
		return fmt.Errorf("%w; see %s", err, r.cluster.dir.Log("kube-apiserver"))
	}
	r.cluster.log.Note("API server ready")
	return nil
}

// startRuntimes starts containerd on every node and loads the images that the cluster itself needs.
func (r *run) startRuntimes(ctx context.Context) error {
	for i, node := range r.plan.Nodes {
		if err := r.start(r.record.Nodes[i], r.plan.Containerd(node)); err != nil {
			return err
		}
	}
	pause, coredns := r.cluster.dir.Sub("pause.tar"), r.cluster.dir.Sub("coredns.tar")
	if err := addons.WritePauseImage(pause, r.plan.Binaries.Path("pause", "pause")); err != nil {
		return err
	}
	if err := addons.WriteCoreDNSImage(coredns, r.plan.Binaries.Path("coredns", "coredns")); err != nil {
		return err
	}
	for _, node := range r.record.Nodes {
		if err := poll(ctx, startLimit, "containerd on "+node.Name, func(ctx context.Context) error {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", node.Socket)
			if err != nil {
				return err
			}
			return conn.Close()
		}); err != nil {
			return fmt.Errorf("%w; see %s", err, r.cluster.dir.Log("containerd-"+node.Name))
		}
	}
	if err := load(ctx, r.record, []string{pause, coredns}, r.cluster.log); err != nil {
		return err
	}
	for _, archive := range []string{pause, coredns} {
		if err := os.Remove(archive); err != nil {
			return fmt.Errorf("remove a loaded image's archive: %w", err)
		}
	}
	return nil
}

// startRest starts what needs the API server.
func (r *run) startRest() error {
	for i, node := range r.plan.Nodes {
		for _, program := range r.plan.NodePrograms(node) {
			if err := r.start(r.record.Nodes[i], program); err != nil {
				return err
			}
		}
	}
	for _, program := range r.plan.ControlPlane()[2:] {
		if err := r.start(r.record.Nodes[0], program); err != nil {
			return err
		}
	}
	return nil
}

// awaitReady waits for nodes, DNS and the default service account: before that, not every pod can be created.
func (c *Cluster) awaitReady(ctx context.Context, r *run, client *kubeapi.Client) error {
	// Before a step's limit is over, a program that has ended is the better explanation.
	checked := func(ask func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			err := ask(ctx)
			if alive, why := r.record.Alive(); err != nil && !alive {
				return fmt.Errorf("%s; see %s: %w", why, c.dir.Sub("logs"), err)
			}
			return err
		}
	}
	if err := poll(ctx, nodesLimit, "the nodes", checked(func(ctx context.Context) error {
		return client.NodesReady(ctx, nodeNames(r.record))
	})); err != nil {
		return err
	}
	c.log.Note("nodes ready")
	for _, node := range r.plan.Nodes {
		// Told, not allocated: which range a node has is fixed by its number, not by who registers first.
		ranges, err := json.Marshal(node.Pods)
		if err != nil {
			return fmt.Errorf("encode the pod ranges of %s: %w", node.Name, err)
		}
		patch := fmt.Appendf(nil, `{"spec":{"podCIDR":%q,"podCIDRs":%s}}`, node.Pods[0], ranges)
		if err := client.Merge(ctx, "/api/v1/nodes/"+node.Name, patch); err != nil {
			return fmt.Errorf("tell the pod range of %s: %w", node.Name, err)
		}
	}
	if err := poll(ctx, workloadLimit, "cluster DNS", checked(func(ctx context.Context) error {
		return client.DeploymentReady(ctx, "kube-system", "coredns")
	})); err != nil {
		return err
	}
	c.log.Note("cluster DNS ready")
	return poll(ctx, workloadLimit, "the default service account", checked(func(ctx context.Context) error {
		return client.Exists(ctx, "/api/v1/namespaces/default/serviceaccounts/default")
	}))
}
