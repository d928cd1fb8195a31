package kubeobject

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/clientcmd"
)

const absent = "absent"

// seen is what a watch has said: the value of each ConfigMap, or absent.
type seen struct {
	mu   sync.Mutex
	said []string
}

func (s *seen) see(m *corev1.ConfigMap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m == nil {
		s.said = append(s.said, absent)
		return
	}
	s.said = append(s.said, m.Name+"="+m.Data["is"])
}

// comesTo waits until the watch has said this, but for what it has said twice.
func (s *seen) comesTo(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		s.mu.Lock()
		got = slices.Compact(slices.Clone(s.said))
		s.mu.Unlock()
		if slices.Equal(got, want) {
			return
		}
	}
	t.Fatalf("said %q, want %q", got, want)
}

func watching(t *testing.T, client kubernetes.Interface, namespace string) *seen {
	t.Helper()
	s := &seen{}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { WatchConfigMap(ctx, client, namespace, "wanted", s.see) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

func configMap(name, is string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"is": is}}
}

// tell puts an object through its life, beside one of another name, and says what a watch of it comes to.
func tell(t *testing.T, client kubernetes.Interface, namespace string, s *seen) {
	t.Helper()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	maps := client.CoreV1().ConfigMaps(namespace)
	must(maps.Create(t.Context(), configMap("other", "1"), metav1.CreateOptions{}))
	must(maps.Create(t.Context(), configMap("wanted", "1"), metav1.CreateOptions{}))
	s.comesTo(t, absent, "wanted=1")
	must(maps.Update(t.Context(), configMap("other", "2"), metav1.UpdateOptions{}))
	must(maps.Update(t.Context(), configMap("wanted", "2"), metav1.UpdateOptions{}))
	s.comesTo(t, absent, "wanted=1", "wanted=2")
	must(nil, maps.Delete(t.Context(), "other", metav1.DeleteOptions{}))
	must(nil, maps.Delete(t.Context(), "wanted", metav1.DeleteOptions{}))
	s.comesTo(t, absent, "wanted=1", "wanted=2", absent)
	must(maps.Create(t.Context(), configMap("wanted", "3"), metav1.CreateOptions{}))
	s.comesTo(t, absent, "wanted=1", "wanted=2", absent, "wanted=3")
}

func TestOneObjectIsSeenComingChangingAndGoing(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1")) })
	client := fake.NewClientset()
	s := watching(t, client, "default")
	s.comesTo(t, absent)
	// A fake forgets what happens between a list and its watch.
	watches := func(a clienttesting.Action) bool {
		w, ok := a.(clienttesting.WatchAction)
		return ok && w.GetWatchRestrictions().Fields.String() == "metadata.name=wanted"
	}
	for deadline := time.Now().Add(10 * time.Second); !slices.ContainsFunc(client.Actions(), watches); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing, or more than one object, is watched")
		}
	}
	tell(t, client, "default", s)
}

func TestRealAPIServerTellsOfOneObject(t *testing.T) {
	kubeconfig := os.Getenv("BULWARK_TEST_KUBECONFIG")
	if kubeconfig == "" {
		t.Skip("BULWARK_TEST_KUBECONFIG names no cluster")
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	ns, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "kubeobject-test-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{})
	})
	s := watching(t, client, ns.Name)
	s.comesTo(t, absent)
	tell(t, client, ns.Name, s)
}

// What was missed while the API server was away is made up for by the next list.
func TestNextListTellsWhatWasMissed(t *testing.T) {
	s := &seen{}
	o := &sight[corev1.ConfigMap]{name: "wanted", see: s.see}
	lists := [][]any{{}, {}, {configMap("other", "1"), configMap("wanted", "1")}, {configMap("wanted", "2")}, {configMap("other", "1")}, {}}
	for _, list := range lists {
		if err := o.Replace(list, ""); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{absent, "wanted=1", "wanted=2", absent}; !slices.Equal(s.said, want) {
		t.Fatalf("said %q, want %q", s.said, want)
	}
}
