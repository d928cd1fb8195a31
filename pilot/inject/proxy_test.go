package inject

import (
	"regexp"
	"slices"
	"testing"

	xdsbootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	xdscore "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// startedWith is the bootstrap of an injected pod's proxy, as kubelet expands it.
func startedWith(t *testing.T, p *core.Pod, podIP string) *xdsbootstrap.Bootstrap {
	t.Helper()
	i := slices.IndexFunc(p.Spec.InitContainers, func(c core.Container) bool { return c.Name == mesh.ProxyContainer })
	text := p.Spec.InitContainers[i].Args[1]
	expanded := regexp.MustCompile(`\$\$|\$\(\w+\)`).ReplaceAllStringFunc(text, func(found string) string { // as kubelet does
		return map[string]string{"$$": "$", "$(POD_IP)": podIP, "$(POD_NAME)": "wrong"}[found]
	})
	b := &xdsbootstrap.Bootstrap{}
	if err := protojson.Unmarshal([]byte(expanded), b); err != nil {
		t.Fatal(err)
	}
	return b
}

// startProxy runs a pod's Envoy at 127.0.0.1 without anybody who configures it, and returns its health port.
func startProxy(t *testing.T, p *core.Pod, changes ...func(*xdsbootstrap.Bootstrap)) uint32 {
	t.Helper()
	b := startedWith(t, p, "127.0.0.1")
	b.DynamicResources, b.StatsSinks = nil, nil
	ports := envoytest.FreePorts(t, 2)
	at := func(a *xdscore.Address, port uint32) {
		a.GetSocketAddress().PortSpecifier = &xdscore.SocketAddress_PortValue{PortValue: port}
	}
	at(b.Admin.Address, ports[0])
	at(b.StaticResources.Listeners[0].Address, ports[1])
	admin := translate.Admin()
	at(admin.LoadAssignment.Endpoints[0].LbEndpoints[0].GetEndpoint().Address, ports[0])
	b.StaticResources.Clusters = append(b.StaticResources.Clusters, admin)
	for _, change := range changes {
		change(b)
	}
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")
	return ports[1]
}
