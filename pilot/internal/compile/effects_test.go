package compile_test

import (
	"testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// A pod that leaves a headless service in the moment in which the service loses a port takes the listener of that port along:
// neither change alone says that it was there.
func TestPodAndPortOfAHeadlessServiceGoTogether(t *testing.T) {
	set := compile.Settings{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"}
	before, after := headless("a/db", "a", "db", 1, map[string]string{"app": "db"}), headless("a/db", "a", "db", 1, map[string]string{"app": "db"})
	after.Ports = nil
	pod := func(app string) *registry.Pod {
		return &registry.Pod{ID: "a/db-0", Namespace: "a", Name: "db-0", IP: "10.0.0.1", ServiceAccount: "db", Labels: map[string]string{"app": app}}
	}
	e := compile.EffectsOf(world(t, after, sliceOf("a/db", "a", "10.0.0.1"), pod("other")), set, []registry.Change{
		{Kind: registry.Services, ID: "a/db", Old: before, New: after}, {Kind: registry.Pods, ID: "a/db-0", Old: pod("db"), New: pod("other")}})
	if !e.Frontends[compile.Address{IP: "10.0.0.1", Port: 15432}] {
		t.Errorf("the listeners that may change are %v", e.Frontends)
	}
}
