package pods_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/agent/internal/identity/identitytest"
	"github.com/bulwark-mesh/bulwark/agent/internal/pods"
	"github.com/bulwark-mesh/bulwark/agent/internal/sds"
	api "github.com/bulwark-mesh/bulwark/agent/internal/workloadapi"
)

type benchmark struct {
	*identitytest.Node
	b        *testing.B
	dir      string
	registry *pods.Registry
}

func newBenchmark(b *testing.B) *benchmark {
	b.Helper()
	if os.Getuid() != 0 {
		b.Skip("giving sockets to the proxy's user needs root")
	}
	n := &benchmark{Node: identitytest.New(b, clock.RealClock{}, identitytest.Quiet), b: b, dir: b.TempDir()}
	var err error
	n.registry, err = pods.New(filepath.Join(n.dir, "state"), filepath.Join(n.dir, "tokens"), n.Issuer, identitytest.Quiet, sds.Attach(n.Bundle, identitytest.Quiet), api.Attach(n.Bundle))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { n.registry.Close() })
	return n
}

func (n *benchmark) publish(i int) pods.Volume {
	n.b.Helper()
	name := fmt.Sprintf("pod-%d", i)
	v := pods.Volume{
		ID: "csi-" + name, Target: filepath.Join(n.dir, "pods", name, "mount"),
		Facts: identity.Facts{Namespace: "finance", Pod: name, UID: name, ServiceAccount: "payroll"},
	}
	n.Citadel.Account("token", n.CA.ID("finance", "payroll"))
	if err := n.registry.Publish(v, "token", time.Now().Add(time.Hour)); err != nil {
		n.b.Fatal(err)
	}
	return v
}

func (n *benchmark) ready(count int) {
	n.b.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Microsecond) {
		have := 0
		for _, p := range n.registry.Pods() {
			if _, err := p.GetX509SVID(); err == nil {
				have++
			}
		}
		if have == count {
			return
		}
		if time.Now().After(end) {
			n.b.Fatalf("%d of %d pods have an SVID", have, count)
		}
	}
}

// BenchmarkHundredPods reports what a pod costs the agent while no proxy is connected: its key, certificate, socket and
// goroutines. The fake Citadel's own part is in it.
func BenchmarkHundredPods(b *testing.B) {
	const count = 100
	memory := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	var total int64
	for b.Loop() {
		n := newBenchmark(b)
		before := memory()
		for i := range count {
			n.publish(i)
		}
		n.ready(count)
		total += int64(memory()) - int64(before)
		n.registry.Close()
	}
	b.ReportMetric(float64(total)/float64(b.N)/count, "bytes/pod")
}

// BenchmarkPublishToSVID is the time from kubelet's call until the pod has its SVID.
func BenchmarkPublishToSVID(b *testing.B) {
	n := newBenchmark(b)
	for i := 0; b.Loop(); i++ {
		v := n.publish(i)
		<-n.registry.Pods()[0].Ready()
		b.StopTimer()
		if err := n.registry.Unpublish(v.ID, v.Target); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
