package catalog

import (
	"slices"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Health is the listener that answers kubelet for a pod.
type Health struct{ Pod string }

func (r Health) Type() string            { return deltaxds.ListenerType }
func (r Health) Name() string            { return translate.HealthListener }
func (r Health) layers(*Catalog) []Layer { return []Layer{OfPod(r.Pod)} }

func (r Health) make(c *Catalog) proto.Message {
	return translate.HealthListener15021(compile.ParseProbes(c.pods[r.Pod].Probes))
}

// Probe is a port of the application, as kubelet would ask it.
type Probe struct{ Pod, Cluster string }

func (r Probe) Type() string { return deltaxds.ClusterType }
func (r Probe) Name() string { return r.Cluster }

func (r Probe) layers(c *Catalog) []Layer {
	if r.make(c) == nil {
		return nil
	}
	return []Layer{OfPod(r.Pod)}
}

func (r Probe) make(c *Catalog) proto.Message {
	all := probed(c.pods[r.Pod])
	if i := slices.IndexFunc(all, func(c *cluster.Cluster) bool { return c.GetName() == r.Cluster }); i >= 0 {
		return all[i]
	}
	return nil
}

func probed(p *registry.Pod) []*cluster.Cluster {
	return translate.ProbeClusters(compile.ParseProbes(p.Probes), p.IP)
}

var probes = family{
	of: func(c *Catalog, l Layer) []Resource {
		if l.kind != podLayer {
			return nil
		}
		return append(probesOf(c.pods[l.of]), Health{l.of})
	},
	touched: func(_ *Catalog, t *turn) (out []Resource) {
		for _, p := range t.pods {
			if p.was.Probes != p.now.Probes || p.was.IP != p.now.IP {
				out = append(append(append(out, probesOf(p.was)...), probesOf(p.now)...), Health{p.now.ID})
			}
		}
		return out
	},
}

func probesOf(p *registry.Pod) (out []Resource) {
	for _, c := range probed(p) {
		out = append(out, Probe{p.ID, c.GetName()})
	}
	return out
}
