package inject

import (
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// rewriteProbes makes kubelet ask the proxy in place of the application, whose ports take mutual TLS only, and returns
// what the proxy has to ask. Probes that run a command are left as they are.
func rewriteProbes(pod *core.Pod) []translate.Probe {
	var out []translate.Probe
	rewrite := func(c *core.Container) {
		for _, p := range []struct {
			name  string
			probe *core.Probe
		}{{"livez", c.LivenessProbe}, {"readyz", c.ReadinessProbe}, {"startupz", c.StartupProbe}} {
			if original := original(c, p.name, p.probe); original != nil {
				out = append(out, *original)
				redirect(p.probe, original)
			}
		}
	}
	for i := range pod.Spec.InitContainers { // native sidecars have probes, too
		rewrite(&pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		rewrite(&pod.Spec.Containers[i])
	}
	return out
}

// original describes a probe for the proxy, or returns nil where the proxy has nothing to do with it.
func original(c *core.Container, name string, probe *core.Probe) *translate.Probe {
	if probe == nil {
		return nil
	}
	out := &translate.Probe{Container: c.Name, Name: name}
	switch {
	case probe.HTTPGet != nil:
		if probe.HTTPGet.Host != "" { // somewhere else than this pod
			return nil
		}
		port := portNumber(c, probe.HTTPGet.Port)
		path := probe.HTTPGet.Path
		if path == "" || path[0] != '/' {
			path = "/" + path
		}
		out.HTTP = &translate.HTTPProbe{Port: port, Path: path}
		if probe.HTTPGet.Scheme == core.URISchemeHTTPS {
			out.HTTP.Scheme = "HTTPS"
		}
		if port == 0 {
			return nil
		}
	case probe.TCPSocket != nil:
		if probe.TCPSocket.Host != "" {
			return nil
		}
		port := portNumber(c, probe.TCPSocket.Port)
		if port == 0 {
			return nil
		}
		out.TCP = &port
	case probe.GRPC != nil:
		if probe.GRPC.Port <= 0 || probe.GRPC.Port > 65535 { // the API server is to see it
			return nil
		}
		out.GRPC = &translate.GRPCProbe{Port: uint32(probe.GRPC.Port)}
		if probe.GRPC.Service != nil {
			out.GRPC.Service = *probe.GRPC.Service
		}
	default:
		return nil
	}
	return out
}

func portNumber(c *core.Container, port intstr.IntOrString) uint32 {
	if port.Type == intstr.Int {
		if port.IntVal > 0 && port.IntVal < 65536 {
			return uint32(port.IntVal)
		}
		return 0
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return uint32(p.ContainerPort)
		}
	}
	return 0
}

func redirect(probe *core.Probe, original *translate.Probe) {
	get := &core.HTTPGetAction{Path: original.Path(), Port: intstr.FromInt32(mesh.ProxyHealthPort), Scheme: core.URISchemeHTTP}
	if probe.HTTPGet != nil {
		get.HTTPHeaders = probe.HTTPGet.HTTPHeaders
	}
	probe.ProbeHandler = core.ProbeHandler{HTTPGet: get}
}
