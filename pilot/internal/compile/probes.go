package compile

import (
	"encoding/json"
	"fmt"
)

// Probe is an original probe of an application's container, which kubelet now asks of the proxy at
// /app-health/<container>/<name>.
type Probe struct {
	Container string     `json:"container"`
	Name      string     `json:"name"` // livez, readyz or startupz
	HTTP      *HTTPProbe `json:"http,omitempty"`
	TCP       *uint32    `json:"tcp,omitempty"` // port
	GRPC      *GRPCProbe `json:"grpc,omitempty"`
}

// HTTPProbe is an httpGet.
type HTTPProbe struct {
	Port   uint32 `json:"port"`
	Path   string `json:"path"`
	Host   string `json:"host,omitempty"`
	Scheme string `json:"scheme,omitempty"` // HTTPS or empty
}

// GRPCProbe is a grpc probe.
type GRPCProbe struct {
	Port    uint32 `json:"port"`
	Service string `json:"service,omitempty"`
}

// Path is where kubelet asks.
func (p Probe) Path() string { return fmt.Sprintf("/app-health/%s/%s", p.Container, p.Name) }

// MaxProbes bounds what a pod's annotation can make a proxy hold.
const MaxProbes = 64

// ParseProbes reads the annotation that injection wrote. Its author is whoever may write pods in the namespace, so what
// makes no sense is left out rather than believed.
func ParseProbes(annotation string) []Probe {
	if annotation == "" || len(annotation) > 32<<10 {
		return nil
	}
	var all, out []Probe
	if json.Unmarshal([]byte(annotation), &all) != nil {
		return nil
	}
	seen := map[string]bool{}
	for _, p := range all {
		if p.valid() && !seen[p.Path()] && len(out) < MaxProbes {
			seen[p.Path()] = true
			out = append(out, p)
		}
	}
	return out
}

func (p Probe) valid() bool {
	port := uint32(0)
	switch {
	case p.HTTP != nil:
		port = p.HTTP.Port
		if p.HTTP.Path == "" || p.HTTP.Path[0] != '/' {
			return false
		}
	case p.TCP != nil:
		port = *p.TCP
	case p.GRPC != nil:
		port = p.GRPC.Port
	}
	return port > 0 && port <= 65535 && p.Container != "" && (p.Name == "livez" || p.Name == "readyz" || p.Name == "startupz")
}
