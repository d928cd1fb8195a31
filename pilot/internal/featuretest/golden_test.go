package featuretest

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/goldentest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// show is the first document of an input: what the output shows.
type show struct {
	Workload  string   `json:"workload"`  // namespace/name of the pod whose proxy it is
	Resources []string `json:"resources"` // that are shown; it is an error if the proxy has not been sent one
	Absent    []string `json:"absent"`    // that the proxy must not have
	Holders   bool     `json:"holders"`   // shows instead, of every resource that any proxy has, who shares it with whom
	Logs      bool     `json:"logs"`      // with access logs, which are long
	Except    []string `json:"except"`    // fields left out

	Installation installation `json:"installation"`
}

// installation is what of an installation's settings is other than the fixtures'.
type installation struct {
	TrustDomainAliases []string       `json:"trustDomainAliases"`
	TrustedProxies     int            `json:"trustedProxies"`
	LoadBalancers      []netip.Prefix `json:"loadBalancers"`
}

// set makes these the settings until the test ends.
func (i installation) set(t *testing.T) {
	options, was := fixture.Options, settings
	t.Cleanup(func() { fixture.Options, settings = options, was })
	fixture.Options.TrustDomainAliases, fixture.Options.TrustedProxies, fixture.Options.LoadBalancers = i.TrustDomainAliases, i.TrustedProxies, i.LoadBalancers
	settings = compile.SettingsOf(fixture.Options)
}

// golden is an input: the world of testdata, and what is particular to it.
type golden struct {
	name, path string // without .in.yaml
	show       show
	texts      [][]byte
}

// events are the objects of a golden, as its installation reads them, whose settings hold until the test ends.
func (g golden) events(t *testing.T) (out []registry.Event) {
	t.Helper()
	g.show.Installation.set(t)
	for _, text := range g.texts {
		events, err := fixture.Events(text)
		if err != nil {
			t.Fatalf("%s: %v", g.path, err)
		}
		out = append(out, events...)
	}
	return out
}

func goldens(t *testing.T) []golden {
	t.Helper()
	world, err := os.ReadFile("testdata/world.yaml")
	if err != nil {
		t.Fatal(err)
	}
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("inputs: %v, %v", inputs, err)
	}
	var out []golden
	for _, in := range inputs {
		g := golden{path: strings.TrimSuffix(in, ".in.yaml"), name: strings.TrimSuffix(filepath.Base(in), ".in.yaml")}
		text, err := os.ReadFile(in)
		if err != nil {
			t.Fatal(err)
		}
		head, objects, _ := bytes.Cut(text, []byte("\n---\n"))
		if err := yaml.UnmarshalStrict(head, &g.show); err != nil {
			t.Fatalf("%s: %v", in, err)
		}
		g.texts = [][]byte{world, objects}
		out = append(out, g)
	}
	return out
}

// received returns what the proxies of a world hold, by pod, once Pilot has nothing more to say.
func received(t *testing.T, events []registry.Event) (map[string]holdings, *wire) {
	out, w := map[string]holdings{}, newWire()
	synctest.Test(t, func(t *testing.T) {
		p := newPilot(t, events)
		var proxies []*proxy
		for pod := range p.registry.Snapshot().Pods() {
			if pod.Proxied && len(pod.IPs) > 0 {
				x := newProxy(w, pod)
				proxies = append(proxies, x)
				x.connect(t, p)
			}
		}
		synctest.Wait()
		for _, x := range proxies {
			if ok, err := x.connected(); !ok {
				t.Errorf("proxy %s is not connected: %v", x.pod, err)
			}
			all, warming := x.holds()
			if len(warming) > 0 {
				t.Errorf("proxy %s waits for what %v need", x.pod, warming)
			}
			out[x.pod] = all
			x.disconnect()
		}
		p.stop()
	})
	return out, w
}

func TestGolden(t *testing.T) {
	for _, g := range goldens(t) {
		t.Run(g.name, func(t *testing.T) {
			all, w := received(t, g.events(t))
			if all[g.show.Workload] == nil && !g.show.Holders {
				t.Fatalf("there is no proxy in pod %q", g.show.Workload)
			}
			var shown any = holders(all)
			if !g.show.Holders {
				shown = g.show.resources(t, all[g.show.Workload], w)
			}
			compare(t, g.path+".out.yaml", shown)
		})
	}
}

// resources shows the resources that an input asks for.
func (s show) resources(t *testing.T, all holdings, w *wire) map[string]any {
	t.Helper()
	out := map[string]any{}
	for _, name := range s.Resources {
		version, ok := all[name]
		if !ok {
			t.Errorf("the proxy of %s has no %q; it has %q", s.Workload, name, slices.Sorted(maps.Keys(all)))
			continue
		}
		out[name] = prune(readable(t, w.body(name, version)), s)
	}
	for _, name := range s.Absent {
		if _, ok := all[name]; ok {
			t.Errorf("the proxy of %s has %q", s.Workload, name)
		}
	}
	return out
}

// holders tells of every resource which proxies have it, those together that have the same.
func holders(all map[string]holdings) map[string]any {
	versions := map[string]map[string][]string{}
	for _, pod := range slices.Sorted(maps.Keys(all)) {
		for name, version := range all[pod] {
			if versions[name] == nil {
				versions[name] = map[string][]string{}
			}
			versions[name][version] = append(versions[name][version], pod)
		}
	}
	out := map[string]any{}
	for name, by := range versions {
		groups := slices.SortedFunc(maps.Values(by), slices.Compare)
		if len(groups) == 1 && len(groups[0]) == len(all) {
			out[name] = "everyone, the same"
			continue
		}
		lines := make([]string, len(groups))
		for i, pods := range groups {
			lines[i] = strings.Join(pods, ", ")
		}
		out[name] = lines
	}
	return out
}

func readable(t *testing.T, body *anypb.Any) any {
	t.Helper()
	msg, err := body.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	text, err := protojson.Marshal(msg)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func compare(t *testing.T, path string, shown any) {
	t.Helper()
	got, err := yaml.Marshal(shown)
	if err != nil {
		t.Fatal(err)
	}
	goldentest.Compare(t, path, got)
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
