package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	core "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/tools/bench/netns"
	"github.com/bulwark-mesh/bulwark/tools/bench/proc"
	"github.com/bulwark-mesh/bulwark/tools/bench/report"
	"github.com/bulwark-mesh/bulwark/tools/bench/sidecar"
	"github.com/bulwark-mesh/bulwark/tools/envoy"
)

// Envoy is the memory of a real one with the configuration of the first pod, and of one that was told that there is nothing.
type Envoy struct {
	Configured proc.Memory `json:"configured"`
	Empty      proc.Memory `json:"empty"`
	Clusters   int         `json:"clusters"`
	Listeners  int         `json:"listeners"`
}

func (e *Envoy) describe() string {
	return fmt.Sprintf("%s (resident %s, %s; without file pages %s, %s), with %d clusters and %d listeners",
		report.MB(float64(e.Configured.Resident-e.Empty.Resident)), report.MB(float64(e.Configured.Resident)), report.MB(float64(e.Empty.Resident)),
		report.MB(float64(e.Configured.Own)), report.MB(float64(e.Empty.Own)), e.Clusters, e.Listeners)
}

const (
	envoyWithin = 3 * time.Minute
	// steady is how long an Envoy's memory has to stay the same, and about.
	steady = 3 * time.Second
	about  = 256 << 10
	// scratch names the pair of network namespaces: each Envoy has its ports.
	scratch            = "bulwark-xdsload"
	oneIP, otherIP     = "10.253.0.1", "10.253.0.2"
	configured, nobody = "configured", "empty"
)

// envoy starts both Envoys, one after the other, by the arguments that injection gives.
func (e *experiment) envoy(ctx context.Context, r *Result) (err error) {
	e.fleet.Disconnect() // the first pod has one Envoy
	ctx, cancel := context.WithTimeoutCause(ctx, envoyWithin, fmt.Errorf("the Envoys were not measured within %s", envoyWithin))
	defer cancel()
	binary, err := envoy.Path(ctx)
	if err != nil {
		return err
	}
	pod, err := e.world.Injected(ctx)
	if err != nil {
		return err
	}
	if err := netns.Remove(scratch); err != nil {
		return err
	}
	pair, err := netns.NewPair(ctx, scratch, oneIP, otherIP)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, netns.Remove(scratch)) }()
	module, err := sidecar.Module()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, module()) }()
	none := filepath.Join(e.dir, "nothing.sock")
	stop, err := serveNothing(none)
	if err != nil {
		return err
	}
	defer stop()
	r.Envoy = &Envoy{}
	s := stand{binary, pod, e.dir}
	if r.Envoy.Empty, _, err = s.measure(ctx, pair.Server, nobody, otherIP, none); err != nil {
		return err
	}
	var stats map[string]int
	if r.Envoy.Configured, stats, err = s.measure(ctx, pair.Client, configured, oneIP, e.members[0].Socket); err != nil {
		return err
	}
	r.Envoy.Clusters, r.Envoy.Listeners = stats["cluster_manager.active_clusters"], stats["listener_manager.total_listeners_active"]
	return nil
}

// stand is where real Envoys are started.
type stand struct {
	binary string
	pod    *core.Pod
	dir    string
}

// measure runs an Envoy until it has its configuration and its memory is steady. It returns its statistics, too.
func (s stand) measure(ctx context.Context, ns netns.Namespace, name, ip, socket string) (m proc.Memory, stats map[string]int, err error) {
	args, env, err := sidecar.Arguments(s.pod, ip, socket)
	if err != nil {
		return m, nil, err
	}
	admin := filepath.Join(s.dir, name+"-admin.sock")
	err = sidecar.Change(args, func(bootstrap map[string]any) {
		bootstrap["admin"] = map[string]any{"address": map[string]any{"pipe": map[string]any{"path": admin}}} // which no namespace keeps from us
	})
	if err != nil {
		return m, nil, err
	}
	log, err := os.Create(filepath.Join(s.dir, name+"-envoy.log"))
	if err != nil {
		return m, nil, fmt.Errorf("log of Envoy: %w", err)
	}
	defer log.Close()
	ctx, cancel := context.WithCancel(ctx)
	cmd := ns.Command(ctx, netns.Options{CPU: -1}, s.binary, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), log, log
	if err := cmd.Start(); err != nil {
		cancel()
		return m, nil, fmt.Errorf("starting Envoy: %w", err)
	}
	defer func() { cancel(); _ = cmd.Wait() }() // it ends as it was told
	if m, stats, err = settle(ctx, cmd.Process.Pid, admin); err != nil {
		text, _ := os.ReadFile(log.Name()) // what there is
		return m, nil, fmt.Errorf("Envoy %q: %w\n%s", name, err, text[max(0, len(text)-2000):])
	}
	for stat, n := range stats {
		if strings.HasSuffix(stat, ".update_rejected") && n > 0 {
			return m, nil, fmt.Errorf("Envoy %q refuses configuration: %s is %d", name, stat, n)
		}
	}
	return m, stats, nil
}

// settle returns an Envoy's memory when it is ready and takes no more.
func settle(ctx context.Context, pid int, admin string) (m proc.Memory, stats map[string]int, err error) {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", admin)
	}}}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for since := time.Now(); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return m, nil, context.Cause(ctx)
		}
		now, err := proc.MemoryOf(pid)
		if err != nil {
			return m, nil, err
		}
		if _, err := ask(ctx, client, "/ready"); err != nil || now.Resident > m.Resident+about || now.Resident < m.Resident-about {
			since, m = time.Now(), now
			continue
		}
		if time.Since(since) < steady {
			continue
		}
		text, err := ask(ctx, client, "/stats?usedonly")
		return now, statsOf(text), err
	}
}

// ask asks Envoy's admin port.
func ask(ctx context.Context, client *http.Client, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", path, resp.Status)
	}
	return body.Bytes(), nil
}

// statsOf reads counters and gauges.
func statsOf(text []byte) map[string]int {
	out := map[string]int{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		if n, err := strconv.Atoi(value); err == nil {
			out[name] = n
		}
	}
	return out
}

// nothing tells Envoys that there is nothing.
type nothing struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
}

func serveNothing(socket string) (stop func(), err error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("socket of an empty Envoy: %w", err)
	}
	srv := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(srv, nothing{})
	go func() { _ = srv.Serve(l) }() // ends with what is returned
	return srv.Stop, nil
}

// DeltaAggregatedResources implements AggregatedDiscoveryService.
func (n nothing) DeltaAggregatedResources(rpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return deltaxds.NewStream(n, clock.RealClock{}).Serve(rpc, nil)
}

// Resource implements deltaxds.Source.
func (nothing) Resource(string, string) (*deltaxds.Resource, bool) { return nil, true }

// Wildcard implements deltaxds.Source.
func (nothing) Wildcard(string) ([]string, bool) { return nil, true }

// Subscribed implements deltaxds.Source.
func (nothing) Subscribed(string, []string, []string) {}
