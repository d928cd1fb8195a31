package load

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/tools/bench/netns"
)

// A real Envoy that is told that there is nothing becomes ready, and its memory can be read.
func TestEmptyEnvoyIsMeasured(t *testing.T) {
	binary := os.Getenv("BULWARK_ENVOY")
	if binary == "" || os.Getuid() != 0 {
		t.Skip("entering a network namespace needs root, and BULWARK_ENVOY names no Envoy")
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "nothing.sock")
	stop, err := serveNothing(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	r := stand{binary, podWith(t), dir}
	m, stats, err := r.measure(t.Context(), netns.OfProcess(os.Getpid()), nobody, oneIP, socket)
	if err != nil {
		t.Fatal(err)
	}
	if m.Resident < 10<<20 || stats["cluster_manager.active_clusters"] != 1 {
		t.Errorf("memory %+v, statistics %v", m, stats)
	}
}

// podWith is a pod as injection makes it, as far as its Envoy's arguments go.
func podWith(t *testing.T) *core.Pod {
	t.Helper()
	ads := map[string]any{"ads": map[string]any{}, "resource_api_version": "V3"}
	service := []any{map[string]any{"envoy_grpc": map[string]any{"cluster_name": "agent"}}}
	bootstrap, err := json.Marshal(map[string]any{
		"admin": map[string]any{"address": map[string]any{"socket_address": map[string]any{"address": "127.0.0.1", "port_value": mesh.ProxyAdminPort}}},
		"dynamic_resources": map[string]any{"lds_config": ads, "cds_config": ads,
			"ads_config": map[string]any{"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": service}},
		"static_resources": map[string]any{"clusters": []any{map[string]any{
			"name": "agent",
			"typed_extension_protocol_options": map[string]any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": map[string]any{
				"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
				"explicit_http_config": map[string]any{"http2_protocol_options": map[string]any{}}}},
			"load_assignment": map[string]any{"cluster_name": "agent", "endpoints": []any{map[string]any{"lb_endpoints": []any{map[string]any{
				"endpoint": map[string]any{"address": map[string]any{"pipe": map[string]any{"path": mesh.IdentityMountPath + "/" + mesh.AgentSocket}}}}}}}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &core.Pod{Spec: core.PodSpec{InitContainers: []core.Container{{Name: mesh.ProxyContainer, Args: []string{
		"--config-yaml", string(bootstrap), "--service-node", "sidecar~$(IP)", "--service-cluster", "x", "--concurrency", "2", "--disable-hot-restart",
		"--log-level", "warning"}, Env: []core.EnvVar{{Name: "IP", ValueFrom: &core.EnvVarSource{FieldRef: &core.ObjectFieldSelector{FieldPath: "status.podIP"}}}}}}}}
}

func TestStatisticsAreRead(t *testing.T) {
	got := statsOf([]byte("cluster_manager.active_clusters: 12\nlistener_manager.lds.update_rejected: 0\nsome.histogram: P0(nan,1)\nversion: \"x\"\n"))
	if len(got) != 2 || got["cluster_manager.active_clusters"] != 12 {
		t.Errorf("%v", got)
	}
}
