package featuretest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	echo "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/echo/v3"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// TestAServiceTakesLittleMemoryOfAProxy bounds what each service of the mesh that a workload may use takes of its Envoy's memory, called or not. What is
// cheap for one listener is not for thousands: Envoy makes all that listeners share anew for each.
func TestAServiceTakesLittleMemoryOfAProxy(t *testing.T) {
	envoytest.Find(t)
	const services = 200
	alone := allocated(t, 0, "", nil)
	for _, of := range []struct {
		what, port string
		most       int // kB
		alter      func(proto.Message)
	}{
		{"a service of HTTP", "http", 135, nil},
		{"a service of TCP", "tcp", 105, nil},
		{"a service of no declared protocol", "unheard-of", 168, nil},
		// What Envoy takes for any service that has a cluster and a listener.
		{"one with a listener that has one filter", "tcp", 80, bareListener},
		{"and with a cluster without mutual TLS", "tcp", 65, func(m proto.Message) { bareListener(m); bareCluster(m) }},
	} {
		each := (allocated(t, services, of.port, of.alter) - alone) / services / 1000
		t.Logf("%s: %d kB", of.what, each)
		if each > of.most {
			t.Errorf("%s takes %d kB of each proxy that may use it, more than %d", of.what, each, of.most)
		}
	}
}

func bareListener(m proto.Message) {
	l, ok := m.(*listener.Listener)
	if !ok || !strings.HasPrefix(l.GetAddress().GetSocketAddress().GetAddress(), "10.96.") {
		return
	}
	l.FilterChains = []*listener.FilterChain{{Filters: []*listener.Filter{envoy.NetworkFilter("envoy.filters.network.echo", &echo.Echo{})}}}
	l.ListenerFilters = nil
}

func bareCluster(m proto.Message) {
	if c, ok := m.(*cluster.Cluster); ok && c.GetEdsClusterConfig() != nil {
		c.TransportSocket, c.TransportSocketMatches, c.TypedExtensionProtocolOptions = nil, nil, nil
	}
}

// allocated is what an Envoy that knows n services has allocated, in bytes.
func allocated(t *testing.T, n int, port string, alter func(proto.Message)) int {
	t.Helper()
	text := []string{`
apiVersion: v1
kind: Pod
metadata: {name: caller, namespace: shop, labels: {app: caller, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: caller, containers: [{name: app}]}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}]}`}
	for i := range n {
		text = append(text, serviceOfFour(i, port)...)
	}
	var events []registry.Event
	for _, object := range text {
		of, err := fixture.Events([]byte(object))
		if err != nil {
			t.Fatalf("%v in%s", err, object)
		}
		events = append(events, of...)
	}
	at := startIn(t, envoytest.NewCA(t), newPilot(t, events), "shop/caller", false, alter)
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		listeners := strings.Count(string(envoytest.Admin(t, at, "/listeners")), "10.96.")
		clusters := strings.Count(string(envoytest.Admin(t, at, "/clusters")), "::added_via_api::true")
		if listeners >= n && clusters >= n {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("of %d services Envoy has %d listeners and %d clusters", n, listeners, clusters)
		}
	}
	var memory struct {
		Allocated int `json:",string"`
	}
	if err := json.Unmarshal(envoytest.Admin(t, at, "/memory"), &memory); err != nil {
		t.Fatal(err)
	}
	return memory.Allocated
}

// serviceOfFour is a service with a port of this name, and its four pods.
func serviceOfFour(i int, port string) []string {
	name, ready := fmt.Sprintf("service-%d", i), ""
	var out []string
	for j := range 4 {
		address := fmt.Sprintf("10.%d.%d.%d", 1+j, i/250, 1+i%250)
		out = append(out, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s-%[2]d, namespace: shop, labels: {app: %[1]s, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: %[1]s, containers: [{name: app}]}
status: {phase: Running, podIP: %[3]s, podIPs: [{ip: %[3]s}]}`, name, j, address))
		ready += fmt.Sprintf("{addresses: [%s], conditions: {ready: true}, targetRef: {kind: Pod, namespace: shop, name: %s-%d}}, ", address, name, j)
	}
	return append(out, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: shop}
spec: {clusterIP: %[2]s, clusterIPs: [%[2]s], ports: [{name: %[3]s, port: 80, targetPort: 8080}]}`, name, fmt.Sprintf("10.96.%d.%d", i/250, 1+i%250), port), fmt.Sprintf(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s, namespace: shop, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{name: %[2]s, port: 8080}]
endpoints: [%[3]s]`, name, port, ready))
}
