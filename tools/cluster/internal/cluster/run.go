package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/addons"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/cgroup"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/kube"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/namespace"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/network"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/proc"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/state"
)

// run is a cluster being made: every process it starts is on record before the next one starts.
type run struct {
	cluster *Cluster
	plan    kube.Plan
	self    string // this program, which is also the first step of every process it starts
	dialer  *namespace.Dialer

	mu     sync.Mutex
	record state.Record
}

// prepare makes directories, control groups and configuration.
func (c *Cluster) prepare(plan kube.Plan) (*run, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	boot, err := state.BootID()
	if err != nil {
		return nil, err
	}
	spec, err := plan.Fingerprint(addons.Fingerprint())
	if err != nil {
		return nil, err
	}
	r := &run{cluster: c, plan: plan, self: self, record: state.Record{Boot: boot, Spec: spec, Families: plan.Families, Binaries: plan.Binaries}}
	for _, dir := range []string{"logs", "pki", "kubeconfig"} {
		if err := os.MkdirAll(c.dir.Sub(dir), 0o700); err != nil {
			return nil, fmt.Errorf("make the cluster's directories: %w", err)
		}
	}
	groups := []string{c.tree() + "/system"}
	for _, node := range plan.Nodes {
		groups = append(groups, node.Cgroup)
		if err := r.prepareNode(node); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", node.Name, err)
		}
	}
	for _, path := range groups {
		tree, err := cgroup.Open(path)
		if err != nil {
			return nil, err
		}
		if err := tree.Make(); err != nil {
			return nil, err
		}
	}
	return r, c.dir.Save(r.record)
}

func (r *run) prepareNode(node kube.Node) error {
	for _, bind := range r.plan.Binds(node) {
		if err := os.MkdirAll(bind[0], 0o755); err != nil {
			return fmt.Errorf("make the node's directories: %w", err)
		}
		made, err := makeMountPoint(bind[1])
		if err != nil {
			return err
		}
		r.record.MadeDirs = append(r.record.MadeDirs, made...)
	}
	for _, file := range r.plan.NodeFiles(node) {
		if err := os.MkdirAll(filepath.Dir(file.Path), 0o755); err != nil {
			return fmt.Errorf("make the directory of %s: %w", file.Path, err)
		}
		if err := os.WriteFile(file.Path, []byte(file.Content), 0o644); err != nil {
			return fmt.Errorf("write configuration: %w", err)
		}
	}
	return copyPlugins(r.plan.Binaries["containerd"], r.plan.NodeDir(node, "cni", "bin"))
}

// copyPlugins copies, as other CNI plugins are installed beside them.
func copyPlugins(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return fmt.Errorf("make the directory of CNI plugins: %w", err)
	}
	for _, name := range []string{"bridge", "host-local", "loopback", "portmap"} {
		content, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return fmt.Errorf("read a CNI plugin: %w", err)
		}
		if err := os.WriteFile(filepath.Join(to, name), content, 0o755); err != nil {
			return fmt.Errorf("install a CNI plugin: %w", err)
		}
	}
	return nil
}

// makeMountPoint makes a directory of the machine to mount over, and says which were not there before, deepest last.
func makeMountPoint(path string) ([]string, error) {
	var missing []string
	for dir := path; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		missing = append([]string{dir}, missing...)
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("make a mount point: %w", err)
	}
	return missing, nil
}

// startNamespaces starts a holder for the fabric and for every node, and joins them.
func (r *run) startNamespaces(ctx context.Context) error {
	families := r.plan.Families
	fabric, err := r.hold(ctx, "fabric", namespace.Spec{Hostname: r.plan.Name + "-fabric", Sysctls: network.Sysctls(families, false)})
	if err != nil {
		return err
	}
	var joined []network.Node
	for _, node := range r.plan.Nodes {
		holder, err := r.hold(ctx, node.Name, namespace.Spec{
			Hostname: node.Name,
			Binds:    slices.Concat(r.plan.Binds(node), r.plan.TunableBinds(node)),
			Tmpfs:    []string{"/run"},
			Sysctls:  network.Sysctls(families, true),
		})
		if err != nil {
			return err
		}
		r.record.Nodes = append(r.record.Nodes, state.Node{
			Name: node.Name, IP: node.IP().String(), Socket: r.plan.Socket(node), Holder: holder,
		})
		joined = append(joined, network.Node{Name: node.Name, PID: holder.PID, IPs: node.IPs, Pods: node.Pods})
	}
	if err := network.Connect(families, fabric.PID, joined); err != nil {
		return err
	}
	r.dialer, err = namespace.NewDialer(joined[0].PID)
	return err
}

// hold starts a process in new namespaces and waits until it has set them up.
func (r *run) hold(ctx context.Context, name string, spec namespace.Spec) (proc.Process, error) {
	encoded, err := json.Marshal(spec)
	if err != nil {
		return proc.Process{}, fmt.Errorf("encode the namespaces of %s: %w", name, err)
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return proc.Process{}, fmt.Errorf("make a pipe: %w", err)
	}
	defer reader.Close()
	holder, err := r.launch(
		proc.Options{Name: name, Files: []*os.File{writer}, Cloneflags: namespace.New},
		r.self, "internal", "hold", "--name", r.plan.Name, string(encoded),
	)
	if err := errors.Join(err, writer.Close()); err != nil {
		return proc.Process{}, err
	}
	deadline := time.Now().Add(startLimit)
	if until, ok := ctx.Deadline(); ok && until.Before(deadline) {
		deadline = until
	}
	if err := reader.SetReadDeadline(deadline); err != nil {
		return proc.Process{}, fmt.Errorf("bound the wait for %s: %w", name, err)
	}
	problem, err := io.ReadAll(reader)
	if err != nil {
		return proc.Process{}, fmt.Errorf("wait for the namespaces of %s: %w", name, err)
	}
	if len(problem) > 0 || !holder.Alive() {
		return proc.Process{}, fmt.Errorf("set up the namespaces of %s: %s; see %s", name, problem, r.cluster.dir.Log(name))
	}
	return holder, nil
}

// startForwarder opens the API server to the machine, and says on which port.
func (r *run) startForwarder() (int, error) {
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", preferredPort))
	if err != nil {
		if listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return 0, fmt.Errorf("listen for the API server's clients: %w", err)
		}
	}
	defer listener.Close()
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return 0, fmt.Errorf("hand the listener over: %w", err)
	}
	defer file.Close()
	first := r.record.Nodes[0]
	r.record.Port = listener.Addr().(*net.TCPAddr).Port
	_, err = r.launch(
		proc.Options{Name: "forwarder", Files: []*os.File{file}},
		r.self, "internal", "forward", "--name", r.plan.Name, "--enter", fmt.Sprint(first.Holder.PID),
		net.JoinHostPort(first.IP, kube.APIPort),
	)
	return r.record.Port, err
}

// start runs a program on a node.
func (r *run) start(node state.Node, program kube.Program) error {
	argv := []string{r.self, "internal", "spawn", "--name", r.plan.Name, "--enter", fmt.Sprint(node.Holder.PID), "--"}
	_, err := r.launch(proc.Options{Name: program.Name}, append(argv, program.Argv...)...)
	return err
}

func (r *run) launch(opts proc.Options, argv ...string) (proc.Process, error) {
	opts.Log = r.cluster.dir.Log(opts.Name)
	// Nothing else of the caller's environment: a proxy setting, say, would reach kubelet. containerd looks for its shim
	// on the path.
	opts.Env = []string{
		"HOME=/root",
		"PATH=" + r.plan.Binaries["containerd"] + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}
	process, err := proc.Start(opts, argv...)
	if err != nil {
		return process, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.record.Processes = append(r.record.Processes, process)
	return process, r.cluster.dir.Save(r.record)
}
