package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

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

const (
	clientIP     = "10.252.0.1"
	serverIP     = "10.252.0.2"
	authorizerIP = "10.252.1.1" // on a link to the server, which has the other address there
	besideIP     = "10.252.1.2"
	host         = stage.Host
	asked        = "/accounts/1"
	minimalPorts = 10000 // and the port of the server is where the minimal client's Envoy listens for it
)

// scene is what the variants have in common.
type scene struct {
	Options
	self, envoy string // programs
	dir         string
	authority   *ca.CA
	serviceIP   string
	pods        map[string]*core.Pod
	config      map[int]map[string]resources // by the number of a policy's rules, and by side
	addends     []addend
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
	s := &scene{Options: o, pods: map[string]*core.Pod{}, config: map[int]map[string]resources{}}
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
	st, err := stage.New(ctx, s.Kubeconfig, admits()...)
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
	var args []string
	if len(s.Add) > 0 { // also where nobody is asked, so that nothing else differs
		args = []string{providers()}
		if err := st.PretendAuthorizer(ctx, authorizerIP); err != nil {
			return err
		}
	}
	capture := func(ctx context.Context) (map[string]resources, error) {
		return capture(ctx, s.Options, s.authority, s.pods, args...)
	}
	there := 1
	for _, n := range slices.Sorted(slices.Values(append([]int{1}, s.Rules...))) {
		for ; there < n; there += ruleLimit {
			// Of the names of rules, these are before those of the policy that admits the client.
			if err := st.Also(ctx, fmt.Sprintf("others-%d", there), others(there, min(n, there+ruleLimit))...); err != nil {
				return err
			}
		}
		there = n
		if s.config[n], err = capture(ctx); err != nil {
			return err
		}
		if n == 1 { // what is added is added to that
			if err := s.extend(ctx, st, capture); err != nil {
				return err
			}
		}
	}
	return nil
}

// ruleLimit is less than the API server takes in one policy.
const ruleLimit = 500

// admits are the rules by which the client may do what is measured: one about HTTP, one about TCP.
func admits() []stage.Rule {
	var tcp []any
	for _, p := range traffic.Ports {
		if !p.HTTP {
			tcp = append(tcp, fmt.Sprint(p.Number))
		}
	}
	return []stage.Rule{
		stage.From(stage.Client, map[string]any{"ports": tcp}),
		stage.From(stage.Client, map[string]any{"methods": []any{"GET", "POST"}, "paths": []any{"/accounts/*"}}),
	}
}

// others are rules that admit other identities, each to a path of its own. The proxy asks rules in the order of their names.
func others(from, to int) (out []stage.Rule) {
	for i := from; i < to; i++ {
		out = append(out, stage.From(fmt.Sprintf("other-%d", i), map[string]any{"methods": []any{"GET"}, "paths": []any{fmt.Sprintf("/others/%d", i)}}))
	}
	return out
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
	module, err := sidecar.Module()
	if err != nil {
		return err
	}
	s.later(module)
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

// The names of variants that others are compared with.
const (
	plain      = "without proxies"
	redirected = "minimal mTLS, with redirection"
	whole      = "Bulwark"
)

// variants starts all variants.
func (s *scene) variants(ctx context.Context) ([]*variant, error) {
	type start struct {
		name   string
		envoys func(context.Context, *variant) error
	}
	all := []start{{plain, s.plain}, {"minimal mTLS", s.minimal}, {redirected, s.redirected}, {whole, s.bulwark(s.config[1], nil)}}
	for _, n := range s.Rules {
		all = append(all, start{fmt.Sprintf("%s, %d rules", whole, n), s.bulwark(s.config[n], nil)})
	}
	for _, list := range s.Vary {
		by, err := named(list)
		if err != nil {
			return nil, err
		}
		config, varied := map[string]resources{}, map[string]bool{}
		for side, r := range s.config[1] {
			if config[side], err = vary(r, by, varied); err != nil {
				return nil, err
			}
		}
		for _, v := range by {
			if !varied[v.name] && v.bootstrap == nil {
				return nil, fmt.Errorf("there is nothing of %q (%s) in Bulwark's configuration that could be taken from it", v.name, v.without)
			}
		}
		all = append(all, start{whole + " without " + strings.ReplaceAll(list, "+", ", "), s.bulwark(config, by)})
	}
	for _, a := range s.addends {
		all = append(all, start{addPrefix + a.name, s.bulwark(a.config, nil)})
	}
	var out []*variant
	for i, a := range all {
		v, err := s.start(ctx, a.name, fmt.Sprint(i))
		if err == nil {
			err = a.envoys(ctx, v)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.name, err)
		}
		if i := len(out) - len(all) + len(s.addends); i >= 0 {
			v.adds, v.target.Token, v.base = s.addends[i].addition, s.addends[i].issuer.Token, whole
			if v.adds.without != "" {
				v.base = addPrefix + v.adds.without
			}
		}
		out = append(out, v)
	}
	return out, nil
}

// start makes a variant's namespaces, with the application in them.
func (s *scene) start(ctx context.Context, name, short string) (*variant, error) {
	v := &variant{name: name, dir: filepath.Join(s.dir, short), target: traffic.Target{Host: host, Path: asked}}
	for _, side := range []string{stage.Client, stage.Server} {
		if err := os.MkdirAll(filepath.Join(v.dir, side), 0o755); err != nil {
			return nil, err
		}
	}
	pair := "bulwark-bench-" + short
	if err := netns.Remove(pair); err != nil {
		return nil, err
	}
	var err error
	if v.pair, err = netns.NewPair(ctx, pair, clientIP, serverIP); err != nil {
		return nil, err
	}
	s.later(func() error { return netns.Remove(pair) })
	if len(s.Add) > 0 {
		beside, err := v.pair.Beside(ctx, pair, authorizerIP, besideIP)
		if err != nil {
			return nil, err
		}
		if _, err := s.run(ctx, beside, serverCPU, 0, filepath.Join(v.dir, "authorizer.log"), nil, s.self, "traffic", "serve"); err != nil {
			return nil, err
		}
	}
	if _, err := s.run(ctx, v.pair.Server, serverCPU, 0, filepath.Join(v.dir, "app.log"), nil, s.self, "traffic", "serve"); err != nil {
		return nil, err
	}
	return v, nil
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
}

func (v *variant) sides() []side {
	return []side{
		{stage.Server, stage.Client, serverCPU, serverIP, v.pair.Server},
		{stage.Client, stage.Server, clientCPU, clientIP, v.pair.Client},
	}
}

// plain has no Envoys.
func (s *scene) plain(_ context.Context, v *variant) error {
	v.at = func(k traffic.Kind) string { return fmt.Sprintf("%s:%d", serverIP, k.Port().Number) }
	return nil
}

func (s *scene) minimal(ctx context.Context, v *variant) error {
	v.at = func(k traffic.Kind) string { return fmt.Sprintf("127.0.0.1:%d", minimalPorts+k.Port().Number) }
	return s.minimalEnvoys(ctx, v, false)
}

func (s *scene) minimalEnvoys(ctx context.Context, v *variant, redirected bool) error {
	for _, e := range v.sides() {
		svid, err := s.authority.Issue(stage.Namespace, e.name)
		if err != nil {
			return err
		}
		text := minimalClient
		if e.name == stage.Server {
			text = minimalServer
		}
		args, err := minimal(filepath.Join(v.dir, e.name), text, redirected, s.authority, svid, e.peer)
		if err != nil {
			return err
		}
		p, err := s.run(ctx, e.ns, e.cpu, mesh.ProxyUID, filepath.Join(v.dir, e.name+".log"), nil, s.envoy, args...)
		if err != nil {
			return err
		}
		v.envoys = append(v.envoys, p)
	}
	return nil
}

// redirected is minimal where the client calls the service and the kernel brings its connections to the Envoys, as it does in a pod of the mesh.
func (s *scene) redirected(ctx context.Context, v *variant) error {
	v.at = s.ofService
	for _, e := range v.sides() {
		if err := e.ns.Run(ctx, s.Agent, "redirect"); err != nil {
			return err
		}
	}
	return s.minimalEnvoys(ctx, v, true)
}

// ofService is the service's address for a kind of traffic.
func (s *scene) ofService(k traffic.Kind) string {
	return fmt.Sprintf("%s:%d", s.serviceIP, k.Port().Service)
}

// bulwark is a captured configuration, without what the variations take away.
func (s *scene) bulwark(config map[string]resources, by []variation) func(context.Context, *variant) error {
	return func(ctx context.Context, v *variant) error {
		v.at = s.ofService
		for _, e := range v.sides() {
			p, err := s.sidecar(ctx, v, e, config[e.name], by)
			if err != nil {
				return err
			}
			v.envoys = append(v.envoys, p)
		}
		return nil
	}
}

// sidecar is one pod's redirection, agent and Envoy.
func (s *scene) sidecar(ctx context.Context, v *variant, e side, config resources, by []variation) (program, error) {
	if err := e.ns.Run(ctx, s.Agent, "redirect"); err != nil {
		return program{}, err
	}
	svid, err := s.authority.Issue(stage.Namespace, e.name)
	if err != nil {
		return program{}, err
	}
	socket := filepath.Join(v.dir, e.name, mesh.AgentSocket)
	a, err := startAgent(socket, config, s.authority, svid)
	if err != nil {
		return program{}, err
	}
	s.later(func() error { a.stop(); return nil })
	args, env, err := sidecar.Arguments(s.pods[e.name], e.ip, socket)
	if err != nil {
		return program{}, err
	}
	for _, change := range by {
		if change.bootstrap != nil {
			if err := sidecar.Change(args, change.bootstrap); err != nil {
				return program{}, err
			}
		}
	}
	return s.run(ctx, e.ns, e.cpu, mesh.ProxyUID, filepath.Join(v.dir, e.name+".log"), env, s.envoy, args...)
}
