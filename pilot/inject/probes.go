package inject

import (
	"crypto/rand"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// rewriteProbes makes kubelet ask the proxy in place of the application, whose ports take mutual TLS only, and returns
// what the proxy has to ask. What runs a command or sleeps is left as it is, and so is what asks another host than the pod or
// a port of the proxy's own, and what kubelet or the API server will refuse.
func rewriteProbes(pod *core.Pod) []translate.Probe {
	var out []translate.Probe
	rewrite := func(c *core.Container) {
		for _, p := range []struct {
			name  string
			probe *core.Probe
		}{{"livez", c.LivenessProbe}, {"readyz", c.ReadinessProbe}, {"startupz", c.StartupProbe}} {
			if p.probe == nil {
				continue
			}
			if original := original(c, p.probe.ProbeHandler); original != nil {
				original.Name = p.name
				original.Timeout = time.Duration(max(p.probe.TimeoutSeconds, 1))*time.Second + grace
				redirect(&p.probe.ProbeHandler, original)
				out = append(out, *original)
			}
		}
		if c.Lifecycle == nil {
			return
		}
		for _, h := range []struct {
			name string
			hook *core.LifecycleHandler
		}{{"poststart", c.Lifecycle.PostStart}, {"prestop", c.Lifecycle.PreStop}} {
			if h.hook == nil || h.hook.HTTPGet == nil { // kubelet calls no tcpSocket
				continue
			}
			if original := original(c, core.ProbeHandler{HTTPGet: h.hook.HTTPGet}); original != nil {
				// A hook may well end the application, and everybody may ask at the proxy's port: its name is one that only readers of the pod know.
				original.Name, original.HTTP.Hook = h.name+"/"+rand.Text(), true
				h.hook.HTTPGet = toProxy(original, h.hook.HTTPGet.HTTPHeaders)
				out = append(out, *original)
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

// grace is how much longer than kubelet the proxy waits for an answer, so that it is kubelet who says that there was none.
const grace = 5 * time.Second

// original describes what kubelet would ask, for the proxy, or returns nil where the proxy has nothing to do with it.
func original(c *core.Container, handler core.ProbeHandler) *translate.Probe {
	out := &translate.Probe{Container: c.Name}
	switch get, tcp, grpc := handler.HTTPGet, handler.TCPSocket, handler.GRPC; {
	case get != nil:
		https := strings.EqualFold(string(get.Scheme), "https")
		port := portNumber(c, get.Port)
		uri, ok := requestURI(get.Path)
		if get.Host != "" || port == 0 || !ok {
			return nil
		}
		out.HTTP = &translate.HTTPProbe{Port: port, URI: uri, HTTPS: https}
		for _, h := range get.HTTPHeaders {
			if value := strings.TrimSpace(h.Value); !strings.EqualFold(h.Name, "host") {
				out.HTTP.Headers = append(out.HTTP.Headers, translate.Header{Name: http.CanonicalHeaderKey(h.Name), Value: value})
			} else if out.HTTP.Host == "" {
				out.HTTP.Host = value
			}
		}
	case tcp != nil:
		port := portNumber(c, tcp.Port)
		if tcp.Host != "" || port == 0 {
			return nil
		}
		out.TCP = &port
	case grpc != nil:
		port := portNumber(c, intstr.FromInt32(grpc.Port))
		if port == 0 {
			return nil
		}
		out.GRPC = &translate.GRPCProbe{Port: port}
		if grpc.Service != nil {
			out.GRPC.Service = *grpc.Service
		}
	default:
		return nil
	}
	return out
}

// requestURI is what kubelet makes of a declared path: it parses it, and what cannot be parsed is a path.
func requestURI(path string) (string, bool) {
	u, err := url.Parse(path)
	if err != nil {
		u = &url.URL{Path: path}
	}
	u.Scheme, u.Host = "http", "pod"
	req, err := http.NewRequest(http.MethodGet, u.String(), nil)
	if err != nil {
		return "", false
	}
	return req.URL.RequestURI(), true
}

// portNumber is the port of a container that kubelet would ask, or 0 if that is none of the application's.
func portNumber(c *core.Container, port intstr.IntOrString) uint32 {
	number := port.IntVal
	if port.Type == intstr.String {
		number = named(c, port.StrVal)
	}
	if number <= 0 || number > 65535 {
		return 0
	}
	if ofProxy(uint32(number)) {
		return 0
	}
	return uint32(number)
}

// ofProxy reports whether a port is the proxy's own, of which nothing can be asked in an application's name.
func ofProxy(port uint32) bool { return slices.Contains(mesh.ProxyPorts, port) }

// named is the port of that name, or the number that the name is; kubelet looks in the same order.
func named(c *core.Container, name string) int32 {
	for _, p := range c.Ports {
		if p.Name == name {
			return p.ContainerPort
		}
	}
	number, err := strconv.ParseInt(name, 10, 32)
	if err != nil {
		return 0
	}
	return int32(number)
}

func redirect(handler *core.ProbeHandler, original *translate.Probe) {
	if handler.GRPC != nil { // its timeout and the words of its failure are kubelet's own
		name := original.FullName()
		handler.GRPC = &core.GRPCAction{Port: mesh.ProxyHealthPort, Service: &name}
		return
	}
	var headers []core.HTTPHeader
	if handler.HTTPGet != nil {
		headers = handler.HTTPGet.HTTPHeaders
	}
	*handler = core.ProbeHandler{HTTPGet: toProxy(original, headers)}
}

// toProxy asks for the original. The headers are still kubelet's to send: some it writes in a way of its own.
func toProxy(original *translate.Probe, headers []core.HTTPHeader) *core.HTTPGetAction {
	return &core.HTTPGetAction{Path: original.FullName(), Port: intstr.FromInt32(mesh.ProxyHealthPort), Scheme: core.URISchemeHTTP, HTTPHeaders: headers}
}
