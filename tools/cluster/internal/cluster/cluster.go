// Package cluster brings a cluster up, looks after it and takes it down.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/addons"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/binaries"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/cgroup"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/kube"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/kubeapi"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/network"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/state"
)

// Cluster is one named cluster of this machine, running or not.
type Cluster struct {
	dir      state.Dir
	checkout string
	cache    binaries.Cache
	log      *Progress
}

// ErrNotUp is returned by what needs a running cluster.
var ErrNotUp = errors.New("no cluster is up: run `cluster up`")

// New names a cluster; checkout is the directory that has tools/cluster and gets the kubeconfig.
func New(name, checkout string, log *Progress) (*Cluster, error) {
	dir, err := state.Open(name)
	if err != nil {
		return nil, err
	}
	cacheDir, err := binaries.DefaultDir()
	if err != nil {
		return nil, err
	}
	return &Cluster{
		dir: dir, checkout: checkout, log: log,
		cache: binaries.Cache{Source: filepath.Join(checkout, "tools", "cluster"), Dir: cacheDir, Progress: log.Note},
	}, nil
}

// Binaries builds what is not in the cache yet.
func (c *Cluster) Binaries(ctx context.Context) (binaries.Set, error) { return c.cache.Ensure(ctx) }

// tree is the path of the cluster's control groups.
func (c *Cluster) tree() string { return cgroupPath(c.dir.Name) }

func cgroupPath(name string) string { return "/bulwark-cluster-" + name }

// SystemCgroup is where everything but pods runs.
func SystemCgroup(name string) (cgroup.Tree, error) { return cgroup.Open(cgroupPath(name) + "/system") }

func (c *Cluster) plan(set binaries.Set, nodes int, f network.Families) kube.Plan {
	plan := kube.Plan{Name: c.dir.Name, Root: c.dir.Path, Binaries: set, PauseImage: addons.PauseImage, Families: f}
	for n := 1; n <= nodes; n++ {
		plan.Nodes = append(plan.Nodes, kube.NewNode(f, n, c.tree()))
	}
	return plan
}

// Running reads the record of a cluster that is up.
func (c *Cluster) Running() (state.Record, error) {
	record, err := c.dir.Load()
	if err != nil {
		return record, err
	}
	if !record.Ready {
		return record, ErrNotUp
	}
	if ok, why := record.Alive(); !ok {
		return record, fmt.Errorf("%w (%s)", ErrNotUp, why)
	}
	return record, nil
}

// Node finds a node of the running cluster.
func (c *Cluster) Node(name string) (state.Node, error) {
	record, err := c.Running()
	if err != nil {
		return state.Node{}, err
	}
	for _, node := range record.Nodes {
		if node.Name == name {
			return node, nil
		}
	}
	return state.Node{}, fmt.Errorf("there is no node %q", name)
}

func server(port int) string { return fmt.Sprintf("https://127.0.0.1:%d", port) }

// admin reads the credentials that `up` left.
func (c *Cluster) admin() (kube.Admin, error) {
	var admin kube.Admin
	for file, into := range map[string]*[]byte{
		"ca.crt": &admin.CA, "admin.crt": &admin.Pair.Cert, "admin.key": &admin.Pair.Key,
	} {
		content, err := os.ReadFile(c.dir.Sub("pki", file))
		if err != nil {
			return admin, fmt.Errorf("read the admin's credentials: %w", err)
		}
		*into = content
	}
	return admin, nil
}

// Status of a running cluster.
type Status struct {
	Server string
	Nodes  []kubeapi.Node
}

// Status asks the running cluster.
func (c *Cluster) Status(ctx context.Context) (Status, error) {
	record, err := c.Running()
	if err != nil {
		return Status{}, err
	}
	admin, err := c.admin()
	if err != nil {
		return Status{}, err
	}
	status := Status{Server: server(record.Port)}
	client, err := admin.Client(status.Server)
	if err != nil {
		return Status{}, err
	}
	status.Nodes, err = client.Nodes(ctx)
	return status, err
}

// writeKubeconfig gives the checkout its access: the kubeconfig, and the kubectl that fits beside the other binaries.
func (c *Cluster) writeKubeconfig(record state.Record, admin kube.Admin) (string, error) {
	path := filepath.Join(c.checkout, ".cluster", "kubeconfig")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("make the kubeconfig's directory: %w", err)
	}
	config := kubeapi.Kubeconfig(c.dir.Name, server(record.Port), admin.CA, admin.Pair.Cert, admin.Pair.Key)
	if err := os.WriteFile(path, config, 0o600); err != nil {
		return "", fmt.Errorf("write the kubeconfig: %w", err)
	}
	link := filepath.Join(c.checkout, "bin", "kubectl")
	target := record.Binaries.Path("kubernetes", "kubectl")
	if current, err := os.Readlink(link); err == nil && current == target {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return "", fmt.Errorf("make the directory of kubectl: %w", err)
	}
	_ = os.Remove(link)
	if err := os.Symlink(target, link); err != nil {
		return "", fmt.Errorf("link kubectl: %w", err)
	}
	return path, nil
}

// poll asks until there is no error, or gives up with the last one.
func poll(ctx context.Context, limit time.Duration, what string, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; last: %w", what, ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
