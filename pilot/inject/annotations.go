package inject

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	redirection "github.com/bulwark-mesh/bulwark/pkg/redirect"
)

// choices are what a pod's annotations choose of its proxy, by the names that Istio has for them.
type choices struct {
	redirect                           redirection.Options
	cpu, cpuLimit, memory, memoryLimit *resource.Quantity
	image, logLevel, componentLogLevel string
	workers                            int // 0: as many as the CPU limit, or the installation's number
	drain                              time.Duration
	initialDelay, period, failures     int32 // of the proxy's readiness
	keepProbes, keepMetrics            bool  // kubelet, and Prometheus, ask the application itself
	volumes                            []core.Volume
	mounts                             []core.VolumeMount
	advice                             []string
}

// annotation is what one of Istio's annotations of pods does here. Set reads a value; if it is nil the annotation has no effect, and instead says why, or what
// there is in its place.
type annotation struct {
	set     func(c *choices, value string) error
	instead string
}

const prefixRedirect = "traffic.sidecar.istio.io/"

// annotations are all that Istio has for pods, and for any object.
var annotations = map[string]annotation{
	"sidecar.istio.io/inject":                               {set: nothing},
	"sidecar.istio.io/status":                               {set: nothing},
	"sidecar.istio.io/rewriteAppHTTPProbers":                {set: flag(func(c *choices, on bool) { c.keepProbes = !on })},
	"prometheus.istio.io/merge-metrics":                     {set: flag(func(c *choices, on bool) { c.keepMetrics = !on })},
	"sidecar.istio.io/proxyImage":                           {set: text(func(c *choices) *string { return &c.image })},
	"sidecar.istio.io/proxyCPU":                             {set: quantity(func(c *choices) **resource.Quantity { return &c.cpu })},
	"sidecar.istio.io/proxyCPULimit":                        {set: quantity(func(c *choices) **resource.Quantity { return &c.cpuLimit })},
	"sidecar.istio.io/proxyMemory":                          {set: quantity(func(c *choices) **resource.Quantity { return &c.memory })},
	"sidecar.istio.io/proxyMemoryLimit":                     {set: quantity(func(c *choices) **resource.Quantity { return &c.memoryLimit })},
	"sidecar.istio.io/logLevel":                             {set: oneOf(func(c *choices) *string { return &c.logLevel }, "trace", "debug", "info", "warning", "warn", "error", "critical", "off")},
	"sidecar.istio.io/componentLogLevel":                    {set: text(func(c *choices) *string { return &c.componentLogLevel })},
	"sidecar.istio.io/interceptionMode":                     {set: interception},
	"sidecar.istio.io/nativeSidecar":                        {set: must("true", "the proxy is always a native sidecar")},
	"status.sidecar.istio.io/port":                          {set: must("15021", "the proxy's health port is 15021")},
	"proxy.istio.io/config":                                 {set: proxyConfig},
	prefixRedirect + "includeInboundPorts":                  {set: ports(func(c *choices, p []uint16) { c.redirect.IncludeInboundPorts = p })},
	prefixRedirect + "excludeInboundPorts":                  {set: ports(func(c *choices, p []uint16) { c.redirect.ExcludeInboundPorts = p })},
	prefixRedirect + "includeOutboundPorts":                 {set: ports(func(c *choices, p []uint16) { c.redirect.IncludeOutboundPorts = p })},
	prefixRedirect + "excludeOutboundPorts":                 {set: ports(func(c *choices, p []uint16) { c.redirect.ExcludeOutboundPorts = p })},
	prefixRedirect + "includeOutboundIPRanges":              {set: networks(func(c *choices, p []netip.Prefix) { c.redirect.IncludeOutbound = p })},
	prefixRedirect + "excludeOutboundIPRanges":              {set: networks(func(c *choices, p []netip.Prefix) { c.redirect.ExcludeOutbound = p })},
	"readiness.status.sidecar.istio.io/initialDelaySeconds": {set: seconds(func(c *choices) *int32 { return &c.initialDelay })},
	"readiness.status.sidecar.istio.io/periodSeconds":       {set: seconds(func(c *choices) *int32 { return &c.period })},
	"readiness.status.sidecar.istio.io/failureThreshold":    {set: seconds(func(c *choices) *int32 { return &c.failures })},

	userVolume:      {set: volumes},
	userVolumeMount: {set: mounts},

	"readiness.status.sidecar.istio.io/applicationPorts": {instead: "the proxy is ready when it has its configuration; give the application's container a readiness probe"},
	prefixRedirect + "excludeInterfaces":                 {instead: "every interface of the pod is redirected"},
	prefixRedirect + "kubevirtInterfaces":                {instead: "virtual machines are not supported"},
	"istio.io/reroute-virtual-interfaces":                {instead: "virtual machines are not supported"},
	"sidecar.istio.io/discoveryAddress":                  {instead: "proxies are configured by their node's agent"},
	"sidecar.istio.io/proxyImageType":                    {instead: "name an image with sidecar.istio.io/proxyImage"},
	"sidecar.istio.io/bootstrapOverride":                 {instead: "the bootstrap is Bulwark's own"},
	"sidecar.istio.io/statsInclusionPrefixes":            {instead: noStats},
	"sidecar.istio.io/statsInclusionSuffixes":            {instead: noStats},
	"sidecar.istio.io/statsInclusionRegexps":             {instead: noStats},
	"sidecar.istio.io/statsHistogramBuckets":             {instead: noStats},
	"sidecar.istio.io/statsHistogramBins":                {instead: noStats},
	"sidecar.istio.io/statsFlushInterval":                {instead: noStats},
	"sidecar.istio.io/statsEvictionInterval":             {instead: noStats},
	"sidecar.istio.io/statsCompression":                  {instead: noStats},
	"sidecar.istio.io/extraStatTags":                     {instead: noStats},
	"sidecar.istio.io/agentLogLevel":                     {instead: "there is no agent in the pod"},
	"inject.istio.io/templates":                          {instead: "there is one way of injection"},
	"proxy.istio.io/overrides":                           {instead: "it is Istio's own"},
	"istio.io/rev":                                       {instead: "there are no revisions"},
	"galley.istio.io/analyze-suppress":                   {instead: "there is no such analysis"},
	"gateway.istio.io/controller-version":                {instead: "it is Istio's own"},
	"ambient.istio.io/redirection":                       {instead: noAmbient},
	"ambient.istio.io/bypass-inbound-capture":            {instead: noAmbient},
	"ambient.istio.io/dns-capture":                       {instead: noAmbient},
}

const (
	noStats   = "which metrics there are is the same for all workloads"
	noAmbient = "there is no ambient mode"
)

// choose reads a pod's annotations. What is not of the form that an annotation has is an error, which names it; what has no effect is advice.
func choose(pod *core.Pod) (choices, error) {
	c := choices{}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(pod.Annotations)) {
		a, known := annotations[name]
		switch {
		case !known && ofIstio(name):
			c.advise("annotation %s has no effect: it is not one that Istio has for pods", name)
		case !known:
		case a.set == nil:
			c.advise("annotation %s has no effect: %s", name, a.instead)
		default:
			if err := a.set(&c, pod.Annotations[name]); err != nil {
				errs = append(errs, fmt.Errorf("annotation %s: %w", name, err))
			}
		}
	}
	errs = append(errs, c.unmounted(pod))
	if c.keepProbes {
		c.advise("annotation sidecar.istio.io/rewriteAppHTTPProbers: kubelet asks the application itself, in plaintext, which a port of mode STRICT refuses")
	}
	if p := c.redirect.ExcludeInboundPorts; len(p) > 0 && c.redirect.IncludeInboundPorts == nil {
		c.advise("annotation %sexcludeInboundPorts: neither mutual TLS nor policies hold at the ports %s", prefixRedirect, list(p))
	}
	if p := c.redirect.IncludeInboundPorts; p != nil {
		c.advise("annotation %sincludeInboundPorts: neither mutual TLS nor policies hold at any port but %s", prefixRedirect, list(p))
	}
	return c, errors.Join(errs...)
}

// ofIstio tells annotations that somebody may believe to have a meaning here.
func ofIstio(name string) bool {
	domain, _, _ := strings.Cut(name, "/")
	return (domain == "istio.io" || strings.HasSuffix(domain, ".istio.io")) && name != istiocompat.DryRunAnnotation
}

func (c *choices) advise(format string, args ...any) {
	c.advice = append(c.advice, fmt.Sprintf(format, args...))
}

func list(ports []uint16) string {
	if len(ports) == 0 {
		return "none"
	}
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(ports), " ", ", "), "[]")
}

func nothing(*choices, string) error { return nil }

func text(of func(*choices) *string) func(*choices, string) error {
	return func(c *choices, value string) error {
		if value == "" || strings.ContainsAny(value, " \t\r\n") {
			return fmt.Errorf("%q is empty or has blanks", value)
		}
		*of(c) = value
		return nil
	}
}

func oneOf(of func(*choices) *string, values ...string) func(*choices, string) error {
	return func(c *choices, value string) error {
		if !slices.Contains(values, value) {
			return fmt.Errorf("%q is none of %s", value, strings.Join(values, ", "))
		}
		*of(c) = value
		return nil
	}
}

// must takes one value alone, and advises of every other that it has no effect.
func must(value, why string) func(*choices, string) error {
	return func(c *choices, got string) error {
		if got != value {
			c.advise("value %q has no effect: %s", got, why)
		}
		return nil
	}
}

func flag(set func(*choices, bool)) func(*choices, string) error {
	return func(c *choices, value string) error {
		on, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", value)
		}
		set(c, on)
		return nil
	}
}

func quantity(of func(*choices) **resource.Quantity) func(*choices, string) error {
	return func(c *choices, value string) error {
		q, err := resource.ParseQuantity(value)
		if err != nil || q.Sign() < 0 {
			return fmt.Errorf("%q is no quantity, such as 100m or 128Mi", value)
		}
		*of(c) = &q
		return nil
	}
}

func seconds(of func(*choices) *int32) func(*choices, string) error {
	return func(c *choices, value string) error {
		n, err := strconv.ParseInt(value, 10, 32)
		if err != nil || n < 0 {
			return fmt.Errorf("%q is no number", value)
		}
		*of(c) = int32(n)
		return nil
	}
}

// entries are those of a list; false if it is "*", which means all.
func entries(value string) ([]string, bool) {
	if strings.TrimSpace(value) == "*" {
		return nil, false
	}
	out := []string{}
	for _, e := range strings.Split(value, ",") {
		if e = strings.TrimSpace(e); e != "" {
			out = append(out, e)
		}
	}
	return out, true
}

func ports(set func(*choices, []uint16)) func(*choices, string) error {
	return func(c *choices, value string) error {
		all, some := entries(value)
		if !some {
			return nil
		}
		out := []uint16{}
		for _, e := range all {
			n, err := strconv.ParseUint(e, 10, 16)
			if err != nil || n == 0 {
				return fmt.Errorf("%q is no port", e)
			}
			out = append(out, uint16(n))
		}
		set(c, out)
		return nil
	}
}

func networks(set func(*choices, []netip.Prefix)) func(*choices, string) error {
	return func(c *choices, value string) error {
		all, some := entries(value)
		if !some {
			return nil
		}
		out := []netip.Prefix{}
		for _, e := range all {
			p, err := netip.ParsePrefix(e)
			if addr, alone := netip.ParseAddr(e); err != nil && alone == nil {
				p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
			}
			if err != nil || p.Addr().Is4In6() {
				return fmt.Errorf("%q is no network, such as 10.0.0.0/8", e)
			}
			out = append(out, p.Masked())
		}
		set(c, out)
		return nil
	}
}

func interception(c *choices, value string) error {
	switch value {
	case "REDIRECT":
	case "TPROXY":
		c.advise("interceptionMode TPROXY has no effect: applications see connections from 127.0.0.6 or ::6; the client's identity is in the header x-forwarded-client-cert")
	case "NONE":
		return errors.New("NONE leaves the pod without protection; keep the proxy out of it with the label sidecar.istio.io/inject: \"false\"")
	default:
		return fmt.Errorf("%q is neither REDIRECT nor TPROXY", value)
	}
	return nil
}

// proxyConfig reads a ProxyConfig of Istio's, as far as there is something of it here.
func proxyConfig(c *choices, value string) error {
	var fields map[string]any
	if err := yaml.Unmarshal([]byte(value), &fields); err != nil {
		return fmt.Errorf("is no ProxyConfig in YAML or JSON: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		v := fields[name]
		switch name {
		case "concurrency":
			n, ok := v.(float64)
			if !ok || n < 0 || n > 128 || n != float64(int(n)) {
				return fmt.Errorf("concurrency %v is no number of workers", v)
			}
			c.workers = int(n)
		case "holdApplicationUntilProxyStarts":
			if v != true {
				c.advise("proxy.istio.io/config: holdApplicationUntilProxyStarts has no effect: the application always starts after its proxy")
			}
		case "drainDuration":
			d, err := time.ParseDuration(fmt.Sprint(v))
			if err != nil || d < time.Second {
				return fmt.Errorf("drainDuration %v is no duration of a second or more", v)
			}
			c.drain = d
		case "terminationDrainDuration":
			c.advise("proxy.istio.io/config: terminationDrainDuration has no effect: the proxy serves until the application's containers have ended")
		case "gatewayTopology":
			c.advise("proxy.istio.io/config: gatewayTopology has no effect: how many proxies, and which load balancers, are trusted to name clients the installation says (trustedProxies, loadBalancers), and annotation %s at which ports the PROXY protocol is read", mesh.ProxyProtocolAnnotation)
		default:
			c.advise("proxy.istio.io/config: %s has no effect", name)
		}
	}
	return nil
}
