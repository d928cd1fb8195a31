package inject

import (
	"encoding/json"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

func TestWhoWouldRunAsTheProxyIsRefused(t *testing.T) {
	for pod, refused := range map[string]bool{
		`{"containers":[{"name":"app"}]}`: false,
		`{"securityContext":{"runAsUser":1338,"runAsGroup":0,"fsGroup":1337,"supplementalGroups":[1337]},"containers":[{"name":"app"}]}`: false,
		`{"securityContext":{"runAsUser":1337},"containers":[{"name":"app"}]}`:                                                           true,
		`{"securityContext":{"runAsGroup":1337},"containers":[{"name":"app"}]}`:                                                          true,
		`{"securityContext":{"runAsUser":1337},"containers":[{"name":"app","securityContext":{"runAsUser":1000}}]}`:                      false,
		`{"containers":[{"name":"other"},{"name":"app","securityContext":{"runAsUser":1337}}]}`:                                          true,
		`{"containers":[{"name":"other"}],"initContainers":[{"name":"app","securityContext":{"runAsGroup":1337}}]}`:                      true,
	} {
		resp := review(t, config, []byte(`{"metadata":{"name":"x"},"spec":`+pod+`}`), enabled)
		if resp.Allowed == refused {
			t.Errorf("%s: allowed %v", pod, resp.Allowed)
		}
		if refused && !strings.Contains(resp.Result.Message, "container app is to run as user or group 1337") {
			t.Errorf("%s: %s", pod, resp.Result.Message)
		}
	}
	if resp := review(t, config, []byte(`{"metadata":{"name":"x"},"spec":{"securityContext":{"runAsUser":1337},"containers":[{"name":"app"}]}}`), nil); !resp.Allowed {
		t.Error("a pod that gets no proxy is refused")
	}
}

// With an init container that redirects by itself, neither the plugin nor the agent is told anything, whatever the author wrote.
func TestOnlyInjectionTellsThePlugin(t *testing.T) {
	text := []byte(`{"metadata":{"name":"x","annotations":{"bulwark.dev/redirect":"{\"excludeInboundPorts\":[80]}"}},"spec":{"containers":[{"name":"a"}]}}`)
	for _, cni := range []bool{false, true} {
		c := config
		c.CNI = cni
		var pod core.Pod
		if err := json.Unmarshal(admitTo(t, c, text, enabled), &pod); err != nil {
			t.Fatal(err)
		}
		want, attributes := "", 0
		if cni {
			want, attributes = "{}", 1
		}
		if got := pod.Annotations[mesh.RedirectAnnotation]; got != want || len(pod.Spec.Volumes[0].CSI.VolumeAttributes) != attributes {
			t.Errorf("cni %v: annotation %q, volume %+v", cni, got, pod.Spec.Volumes[0].CSI)
		}
	}
}
