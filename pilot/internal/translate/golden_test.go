package translate_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var settings = compile.Settings{TrustDomain: fixture.Options.TrustDomain, RootNamespace: fixture.Options.RootNamespace}

// show is the first document of an input: which of the resources the output shows.
type show struct {
	Workload  string   `json:"workload"` // namespace/name of the pod whose proxy it is
	Resources []string `json:"resources"`
	Logs      bool     `json:"logs"`   // with access logs, which are long
	Except    []string `json:"except"` // fields left out
}

// everything renders all that one pod's proxy gets, by name.
func everything(t *testing.T, snap *registry.Snapshot, workload string) map[string]proto.Message {
	t.Helper()
	pod := snap.Pod(workload)
	if pod == nil {
		t.Fatalf("no pod %q", workload)
	}
	out := map[string]proto.Message{
		"cluster/" + translate.PassthroughCluster: translate.Passthrough(),
		"cluster/" + translate.AdminCluster:       translate.Admin(),
		"listener/" + translate.VirtualOutbound:   translate.OutboundListener(),
		"listener/" + translate.StatsListener:     translate.StatsListener15090(),
	}
	for s := range snap.Services() {
		for _, p := range compile.ServicePorts(snap, settings, s) {
			c := translate.OutboundCluster(&p, pod.Delivery)
			out["cluster/"+c.GetName()] = c
			out["endpoints/"+c.GetName()] = translate.Endpoints(c.GetName(), compile.Endpoints(snap, settings, s, p.Number))
		}
		for _, name := range compile.Listeners(snap, s) {
			ip, port, _ := strings.Cut(name, "_")
			number, err := strconv.ParseUint(port, 10, 16)
			if err != nil {
				t.Fatal(err)
			}
			out["listener/"+name] = translate.ServiceListener(compile.FrontendAt(snap, settings, ip, uint32(number)))
		}
	}
	w := compile.CompileWorkload(snap, settings, compile.ClassOf(pod))
	out["listener/"+translate.VirtualInbound] = translate.InboundListener(settings, &w)
	for _, name := range translate.AuthorizationNames() {
		out[name] = translate.Authorization(&w, name)
	}
	for _, name := range translate.RevocationNames() {
		out[name] = translate.Revocations(settings, slices.Collect(snap.Revocations()), name)
	}
	out["listener/"+translate.HealthListener] = translate.HealthListener15021(w.Probes)
	for _, c := range append(translate.ProbeClusters(w.Probes, pod.IP), translate.Inbound()) {
		out["cluster/"+c.GetName()] = c
	}
	return out
}

func TestGolden(t *testing.T) {
	world, err := os.ReadFile("testdata/world.yaml")
	if err != nil {
		t.Fatal(err)
	}
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("inputs: %v, %v", inputs, err)
	}
	for _, in := range inputs {
		t.Run(strings.TrimSuffix(filepath.Base(in), ".in.yaml"), func(t *testing.T) {
			text, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			head, objects, _ := bytes.Cut(text, []byte("\n---\n"))
			var s show
			if err := yaml.UnmarshalStrict(head, &s); err != nil {
				t.Fatal(err)
			}
			reg, err := fixture.Load(world, objects)
			if err != nil {
				t.Fatal(err)
			}
			all := everything(t, reg.Snapshot(), s.Workload)
			golden(t, strings.TrimSuffix(in, ".in.yaml")+".out.yaml", all, s)
			t.Run("Envoy", func(t *testing.T) {
				ca, files := envoytest.NewCA(t), &volume{t: t, dir: t.TempDir()}
				files.write(ca.Issue(t, "spiffe://cluster.local/ns/finance/sa/payroll"), ca.Root)
				envoytest.Validate(t, relocated(t, static(all), files.dir))
			})
		})
	}
}

// static puts resources into a bootstrap, for Envoy to judge.
func static(all map[string]proto.Message) *bootstrap.Bootstrap {
	b := translate.Bootstrap()
	b.DynamicResources.CdsConfig, b.DynamicResources.LdsConfig = nil, nil
	for _, m := range all {
		switch r := m.(type) {
		case *cluster.Cluster:
			b.StaticResources.Clusters = append(b.StaticResources.Clusters, r)
		case *listener.Listener:
			b.StaticResources.Listeners = append(b.StaticResources.Listeners, r)
		}
	}
	return b
}

func golden(t *testing.T, path string, all map[string]proto.Message, s show) {
	t.Helper()
	shown := map[string]any{}
	for _, name := range s.Resources {
		msg, ok := all[name]
		if !ok {
			shown[name] = nil
			continue
		}
		text, err := protojson.Marshal(msg)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(text, &v); err != nil {
			t.Fatal(err)
		}
		shown[name] = prune(v, s)
	}
	got, err := yaml.Marshal(shown)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (make it with -update)", err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

// prune drops what an input does not want to see.
func prune(v any, s show) any {
	switch x := v.(type) {
	case map[string]any:
		for k, field := range x {
			if (k == "accessLog" || k == "upstreamLog") && !s.Logs || slices.Contains(s.Except, k) {
				delete(x, k)
				continue
			}
			x[k] = prune(field, s)
		}
	case []any:
		for i := range x {
			x[i] = prune(x[i], s)
		}
	}
	return v
}
