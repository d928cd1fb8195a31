package pods

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/agent/internal/identity/identitytest"
)

// TestOnePodsFilesHoldNobodyElseUp has a writer that does not end, as if its pod had found a way to keep it.
func TestOnePodsFilesHoldNobodyElseUp(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("giving sockets to the proxy's user needs root")
	}
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	for name, end := range map[string]func(r *Registry, v Volume){
		"its volume goes": func(r *Registry, v Volume) {
			if err := r.Unpublish(v.ID, v.Target); err != nil {
				t.Error(err)
			}
		},
		"the agent ends": func(r *Registry, _ Volume) { r.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			r, err := New(filepath.Join(dir, "state"), filepath.Join(dir, "tokens"), n.Issuer, identitytest.Quiet)
			if err != nil {
				t.Fatal(err)
			}
			v := Volume{ID: "csi-1", Target: filepath.Join(dir, "1"), Facts: identity.Facts{Namespace: "finance", Pod: "p", UID: "1", ServiceAccount: "payroll"}}
			if err := r.Publish(v, "", time.Time{}); err != nil {
				t.Fatal(err)
			}
			stopped, cancel := context.WithCancel(context.Background())
			stuck := &writer{cancel: cancel, done: make(chan struct{})}
			r.mu.Lock()
			r.pods["1"].writers[v.ID] = stuck
			r.mu.Unlock()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				end(r, v)
			}()
			<-stopped.Done()
			asked := make(chan struct{})
			go func() {
				defer close(asked)
				r.Pods()
			}()
			select {
			case <-asked:
			case <-time.After(5 * time.Second):
				t.Error("the registry answers nobody")
			}
			close(stuck.done)
			<-ended
			<-asked
			r.Close()
		})
	}
}
