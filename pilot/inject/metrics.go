package inject

import (
	"cmp"
	"strconv"
	"strings"

	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// The annotations by which pods tell a Prometheus where their metrics are. They are nobody's standard, and everybody's habit.
const (
	scrape       = "prometheus.io/scrape"
	scrapePort   = "prometheus.io/port"
	scrapePath   = "prometheus.io/path"
	scrapeScheme = "prometheus.io/scheme"
)

// ownMetrics has Prometheus, which has no certificate, ask the proxy for the application's own metrics, at this one path: the port that has them takes mutual TLS. It
// returns what the proxy has to ask, or nil if the pod has no metrics that it offers. The proxy's own stay at their port, and the agent has them, too.
func ownMetrics(pod *core.Pod) *translate.Probe {
	if pod.Annotations[scrape] != "true" || pod.Annotations[scrapePort] == "" && pod.Annotations[scrapePath] == "" {
		return nil
	}
	port, err := strconv.ParseUint(cmp.Or(pod.Annotations[scrapePort], firstPort(pod)), 10, 16)
	uri, ok := requestURI(cmp.Or(pod.Annotations[scrapePath], "/metrics"))
	if err != nil || port == 0 || !ok || ofProxy(uint32(port)) {
		return nil
	}
	out := &translate.Probe{Container: "prometheus", Name: "metrics", HTTP: &translate.HTTPProbe{
		Port: uint32(port), URI: uri, HTTPS: strings.EqualFold(pod.Annotations[scrapeScheme], "https")}}
	pod.Annotations[scrapePort] = strconv.Itoa(mesh.ProxyHealthPort)
	pod.Annotations[scrapePath] = out.FullName()
	delete(pod.Annotations, scrapeScheme)
	return out
}

// firstPort is the only port that a pod declares, which Prometheus takes if none is named.
func firstPort(pod *core.Pod) string {
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			return strconv.Itoa(int(p.ContainerPort))
		}
	}
	return "80"
}
