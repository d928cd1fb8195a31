package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/tools/bench/netns"
	"github.com/bulwark-mesh/bulwark/tools/bench/sidecar"
	"github.com/bulwark-mesh/bulwark/tools/bench/stage"
	"github.com/bulwark-mesh/bulwark/tools/bench/traffic"
	"github.com/bulwark-mesh/bulwark/tools/envoy"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/ca"
)

// Client's Envoy and load share one processor, server's Envoy and application the other.
const (
	serverCPU = 0
	clientCPU = 1
)

// scene is what the variants have in common.
type scene struct {
	Options
	self, envoy string // programs
	dir         string
	authority   *ca.CA
	serviceIP   string
	pods        map[string]*core.Pod
	config      map[string]resources
	cleanup     []func() error // in reverse
}

func (s *scene) later(f func() error) { s.cleanup = append(s.cleanup, f) }

func (s *scene) close() error {
	var errs []error
	for _, f := range slices.Backward(s.cleanup) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

func newScene(ctx context.Context, o Options) (*scene, error) {
	s := &scene{Options: o, pods: map[string]*core.Pod{}, config: map[string]resources{}}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *scene) prepare(ctx context.Context) (err error) {
	if s.self, err = os.Executable(); err != nil {
		return err
	}
	if err := s.programs(ctx); err != nil {
		return err
	}
	st, err := stage.New(ctx, s.Kubeconfig, "/accounts/*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Remove(ctx)) }() // what was asked for outlives it
	s.serviceIP = st.ServiceIP
	for name, ip := range map[string]string{stage.Client: clientIP, stage.Server: serverIP} {
		if s.pods[name], err = st.PretendPod(ctx, name, ip); err != nil {
			return err
		}
	}
	if err := st.PretendEndpoint(ctx, serverIP); err != nil {
		return err
	}
	if s.authority, err = ca.Load(ctx, st.Kube); err != nil {
		return err
	}
	s.config[stage.Client], s.config[stage.Server], err = capture(ctx, s.Options, s.authority, s.pods)
	return err
}

// programs puts Envoy where its user may run it.
func (s *scene) programs(ctx context.Context) error {
	found, err := envoy.Path(ctx)
	if err != nil {
		return err
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), scratch+"*"))
	if err != nil {
		return err
	}
	for _, dir := range left { // of runs that were killed
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if s.dir, err = os.MkdirTemp("", scratch); err != nil {
		return fmt.Errorf("directory for sockets and logs: %w", err)
	}
	s.later(func() error { return os.RemoveAll(s.dir) })
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return err
	}
	s.envoy = filepath.Join(s.dir, "envoy")
	if os.Link(found, s.envoy) == nil {
		return nil
	}
	from, err := os.Open(found)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(s.envoy, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}

// variants starts all variants; the first is what the others are compared with.
func (s *scene) variants(ctx context.Context) ([]*variant, error) {
	plain, err := s.start(ctx, "minimal", s.minimal)
	if err != nil {
		return nil, err
	}
	redirected, err := s.start(ctx, "redirected", s.redirected)
	if err != nil {
		return nil, err
	}
	quiet := map[string]resources{}
	for side, r := range s.config {
		if quiet[side], err = silent(r); err != nil {
			return nil, err
		}
	}
	without, err := s.start(ctx, "silent", s.bulwark(quiet, false))
	if err != nil {
		return nil, err
	}
	full, err := s.start(ctx, "full", s.bulwark(s.config, true))
	if err != nil {
		return nil, err
	}
	return []*variant{plain, redirected, without, full}, nil
}

// start makes a variant's namespaces, with the application in them.
func (s *scene) start(ctx context.Context, name string, envoys func(context.Context, *variant) error) (*variant, error) {
	v := &variant{name: name, dir: filepath.Join(s.dir, name)}
	for _, side := range []string{stage.Client, stage.Server} {
		if err := os.MkdirAll(filepath.Join(v.dir, side), 0o755); err != nil {
			return nil, err
		}
	}
	pair := "bulwark-bench-" + name
	if err := netns.Remove(pair); err != nil {
		return nil, err
	}
	var err error
	if v.pair, err = netns.NewPair(ctx, pair, clientIP, serverIP); err != nil {
		return nil, err
	}
	s.later(func() error { return netns.Remove(pair) })
	if _, err := s.run(ctx, v.pair.Server, serverCPU, 0, filepath.Join(v.dir, "app.log"), nil, s.self, "traffic", "serve"); err != nil {
		return nil, err
	}
	return v, envoys(ctx, v)
}

// scratch begins the names of the scenes' directories.
const scratch = "bench-dataplane"

// run starts a program that ends with the scene.
func (s *scene) run(ctx context.Context, ns netns.Namespace, cpu, uid int, log string, env []string, binary string, args ...string) (program, error) {
	p, err := start(ctx, ns, netns.Options{CPU: cpu, UID: uid}, log, env, binary, args...)
	if err == nil {
		s.later(func() error { _ = p.cmd.Wait(); return nil }) // ctx has ended it
	}
	return p, err
}

// side is one end of a variant.
type side struct {
	name string
	peer string
	cpu  int
	ip   string
	ns   netns.Namespace
	into *program
}

func (v *variant) sides() []side {
	return []side{
		{stage.Server, stage.Client, serverCPU, serverIP, v.pair.Server, &v.server},
		{stage.Client, stage.Server, clientCPU, clientIP, v.pair.Client, &v.client},
	}
}

func (s *scene) minimal(ctx context.Context, v *variant) error {
	v.target = traffic.Target{Address: fmt.Sprintf("127.0.0.1:%d", minimalPort), Host: stage.Host, Path: asked}
	for _, e := range v.sides() {
		svid, err := s.authority.Issue(stage.Namespace, e.name)
		if err != nil {
			return err
		}
		text := minimalClient
		if e.name == stage.Server {
			text = minimalServer
		}
		args, err := minimal(filepath.Join(v.dir, e.name), text, s.authority, svid, e.peer)
		if err != nil {
			return err
		}
		if *e.into, err = s.run(ctx, e.ns, e.cpu, mesh.ProxyUID, filepath.Join(v.dir, e.name+".log"), nil, s.envoy, args...); err != nil {
			return err
		}
	}
	return nil
}

// redirected is minimal where the kernel tracks and redirects connections as it does in a pod of the mesh.
func (s *scene) redirected(ctx context.Context, v *variant) error {
	for _, e := range v.sides() {
		if err := e.ns.Run(ctx, s.Agent, "redirect"); err != nil {
			return err
		}
	}
	return s.minimal(ctx, v)
}

func (s *scene) bulwark(config map[string]resources, telemetry bool) func(context.Context, *variant) error {
	return func(ctx context.Context, v *variant) error {
		v.target = traffic.Target{Address: s.serviceIP + ":80", Host: stage.Host, Path: asked}
		for _, e := range v.sides() {
			if err := s.sidecar(ctx, v, e, config[e.name], telemetry); err != nil {
				return err
			}
		}
		return nil
	}
}

// sidecar is one pod's redirection, agent and Envoy.
func (s *scene) sidecar(ctx context.Context, v *variant, e side, config resources, telemetry bool) error {
	if err := e.ns.Run(ctx, s.Agent, "redirect"); err != nil {
		return err
	}
	svid, err := s.authority.Issue(stage.Namespace, e.name)
	if err != nil {
		return err
	}
	socket := filepath.Join(v.dir, e.name, mesh.AgentSocket)
	a, err := startAgent(socket, config, s.authority, svid)
	if err != nil {
		return err
	}
	s.later(func() error { a.stop(); return nil })
	args, env, err := sidecar.Arguments(s.pods[e.name], e.ip, socket)
	if err != nil {
		return err
	}
	if !telemetry {
		if err := sidecar.Change(args, func(bootstrap map[string]any) { delete(bootstrap, "statsSinks") }); err != nil {
			return err
		}
	}
	*e.into, err = s.run(ctx, e.ns, e.cpu, mesh.ProxyUID, filepath.Join(v.dir, e.name+".log"), env, s.envoy, args...)
	return err
}
