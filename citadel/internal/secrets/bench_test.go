package secrets

import (
	"context"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// BenchmarkFirstIssuance measures the first Secrets of a cluster's accounts, 5,000 by default (BULWARK_BENCH_ACCOUNTS), on
// the cluster of BULWARK_TEST_KUBECONFIG, in a namespace of its own that it removes. The mesh must not be installed
// there: its Citadel would do the work. Run it with -benchtime 1x.
func BenchmarkFirstIssuance(b *testing.B) {
	file := os.Getenv("BULWARK_TEST_KUBECONFIG")
	if file == "" {
		b.Skip("BULWARK_TEST_KUBECONFIG names no cluster")
	}
	n := 5000
	if s := os.Getenv("BULWARK_BENCH_ACCOUNTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			b.Fatal(err)
		}
	}
	bulk, setup := benchClient(b, file, 300), benchClient(b, file, 2000) // 300 is Citadel's default
	ctx := context.Background()
	if _, err := bulk.CoreV1().Namespaces().Get(ctx, mesh.Namespace, metav1.GetOptions{}); err == nil {
		b.Skip("the mesh is installed on this cluster")
	}
	for range b.N {
		b.StopTimer()
		ns := benchNamespace(b, setup, n)
		keeper := ca.NewKeeper(newState(b, testclock.NewFakeClock(time.Now())))
		ctl := New(bulk, keeper, Config{TrustDomain: mesh.DefaultTrustDomain, TTL: 24 * time.Hour, Fraction: 0.5, Jitter: 0.1, OptIn: true},
			clock.RealClock{}, &events.FakeRecorder{}, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(io.Discard, nil)))
		heap, cpu := heapInUse(), cpuUsed()
		b.StartTimer()
		run, cancel := context.WithCancel(ctx)
		done := make(chan error)
		start := time.Now()
		go func() { done <- ctl.Run(run) }()
		for p := ctl.Progress(); p.Ready < n; p = ctl.Progress() {
			time.Sleep(50 * time.Millisecond)
			if time.Since(start) > 10*time.Minute {
				b.Fatalf("not done after ten minutes: %+v", p)
			}
		}
		b.StopTimer()
		b.ReportMetric(time.Since(start).Seconds(), "s/start")
		b.ReportMetric(float64((cpuUsed()-cpu).Microseconds())/float64(n), "cpu-µs/Secret")
		b.ReportMetric(float64(heapInUse()-heap)/float64(n), "heap-B/Secret")
		var usage syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err == nil {
			b.ReportMetric(float64(usage.Maxrss)/1024, "peak-MiB")
		}
		latency := newAccountLatency(b, setup, ctl, keeper, ns)
		b.ReportMetric(latency.Seconds(), "s/new-account-in-rotation")
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}

// newAccountLatency is how long a new account waits for its Secret while all others are rewritten.
func newAccountLatency(b *testing.B, client kubernetes.Interface, ctl *Controller, keeper *ca.Keeper, ns string) time.Duration {
	b.Helper()
	keeper.Set(newSigner(b, testclock.NewFakeClock(time.Now()), keeper.Current(), 0))
	for time.Sleep(time.Second); ctl.Progress().LastWrite.Before(time.Now().Add(-time.Second)); time.Sleep(10 * time.Millisecond) {
	}
	ctx := context.Background()
	start := time.Now()
	if _, err := client.CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "newcomer"}}, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	for time.Since(start) < time.Minute {
		if _, err := client.CoreV1().Secrets(ns).Get(ctx, mesh.SecretPrefix+"newcomer", metav1.GetOptions{}); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if p := ctl.Progress(); !p.Syncing {
		b.Log("the rotation was over before the account came")
	}
	return time.Since(start)
}

func benchClient(b *testing.B, file string, qps float32) kubernetes.Interface {
	b.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		b.Fatal(err)
	}
	config.QPS, config.Burst = qps, int(qps)
	transport, err := rest.HTTPClientFor(config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { utilnet.CloseIdleConnectionsFor(transport.Transport) })
	client, err := kubernetes.NewForConfigAndClient(config, transport)
	if err != nil {
		b.Fatal(err)
	}
	return client
}

// benchNamespace makes a namespace that takes part, with n accounts (one is the default account).
func benchNamespace(b *testing.B, client kubernetes.Interface, n int) string {
	b.Helper()
	ctx := context.Background()
	ns, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "bench-secrets-", Labels: map[string]string{mesh.SecretsLabel: "enabled"}}}, metav1.CreateOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := client.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}); err != nil {
			b.Error(err)
		}
	})
	var group errgroup.Group
	group.SetLimit(16)
	for range n - 1 {
		group.Go(func() error {
			_, err := client.CoreV1().ServiceAccounts(ns.Name).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{GenerateName: "a-"}}, metav1.CreateOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	return ns.Name
}

func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func cpuUsed() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
