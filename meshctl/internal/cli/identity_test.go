package cli

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	ktest "k8s.io/client-go/testing"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/identities"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/operator"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

func TestSecretsAreReadWithoutTheirKeys(t *testing.T) {
	client := fake.NewClientset(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "finance", Name: "bulwark.payroll", Labels: map[string]string{mesh.PartOfLabel: mesh.PartOfValue}},
		Type:       mesh.SecretType, Data: map[string][]byte{mesh.CertChainKey: []byte("x"), mesh.PrivateKeyKey: []byte("secret")},
	})
	g := &gathering{client: &kube.Client{Interface: client}}
	g.listSecrets(t.Context())
	if len(g.troubles) > 0 || len(g.secrets) != 1 || g.secrets[0].Data[mesh.CertChainKey] == nil || g.secrets[0].Data[mesh.PrivateKeyKey] != nil {
		t.Fatalf("%v, %v", g.secrets, g.troubles)
	}
}

func TestMissingRightIsNamedAndTheRestIsShown(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("list", "secrets", func(ktest.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "", errors.New("no"))
	})
	g := &gathering{client: &kube.Client{Interface: client}, filter: identities.Filter{Namespace: "finance"}}
	g.listSecrets(t.Context())
	if len(g.troubles) != 1 || !strings.Contains(g.troubles[0].Error(), "`list secrets` in namespace finance") {
		t.Fatalf("%v", g.troubles)
	}
	var said bytes.Buffer
	if err := incomplete(printer.New(&said), g.troubles); err == nil || strings.Count(said.String(), "\n") != 1 {
		t.Fatalf("%v: %s", err, said.String())
	}
}

func TestComponentsThatAreNotReadyAreApart(t *testing.T) {
	pod := func(name, component string, ready corev1.ConditionStatus) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: mesh.Namespace, Name: name, Labels: map[string]string{mesh.PartOfLabel: mesh.PartOfValue, "app.kubernetes.io/name": component}},
			Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}},
		}
	}
	client := &kube.Client{Interface: fake.NewClientset(pod("a1", "agent", corev1.ConditionTrue), pod("a2", "agent", corev1.ConditionFalse), pod("x", "cleanup", corev1.ConditionTrue))}
	ready, others, err := operator.Everyone(t.Context(), client)
	if err != nil || len(ready) != 1 || ready[0].Name != "a1" || len(others) != 1 || others[0].Name != "a2" {
		t.Fatalf("%v, %v, %v", ready, others, err)
	}
	if _, err := operator.Pods(t.Context(), client, "citadel"); err == nil || !errors.Is(err, kube.ErrNotInstalled) {
		t.Fatalf("%v", err)
	}
}

func TestNotRunningIsAnotherAnswerThanNotInstalled(t *testing.T) {
	client := &kube.Client{Interface: fake.NewClientset(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: mesh.Namespace, Name: "c1", Labels: map[string]string{mesh.PartOfLabel: mesh.PartOfValue, "app.kubernetes.io/name": "citadel"}},
	})}
	if _, err := operator.Pods(t.Context(), client, "citadel"); !errors.Is(err, kube.ErrNotRunning) || !strings.HasPrefix(explained(err), "not running: ") {
		t.Errorf("%v", err)
	}
	if _, err := operator.Pods(t.Context(), client, "pilot"); !errors.Is(err, kube.ErrNotInstalled) || !strings.HasPrefix(explained(err), "not found: ") {
		t.Errorf("%v", err)
	}
}

func TestACommandLineThatAsksForNothingFails(t *testing.T) {
	for _, line := range []string{"audit", "audit frob", "ca", "ca rotat", "pilot", "pilot confirn", "frob", "audit tail --last -1", "audit tail --since=-5m", "audit tail --verdict maybe", "audit tail --trial refused",
		"audit tail -o xml", "status extra", "identity", "reach"} {
		var out, notes bytes.Buffer
		if status := Run(t.Context(), strings.Fields(line), strings.NewReader(""), &out, &notes); status != 1 || notes.Len() == 0 {
			t.Errorf("meshctl %s: status %d, said %q", line, status, notes.String())
		}
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestAnOutputThatCannotBeWrittenIsAFailure(t *testing.T) {
	for _, line := range []string{"version --client", "install --dry-run", "--help", "audit tail --help"} {
		var notes bytes.Buffer
		if status := Run(t.Context(), strings.Fields(line), strings.NewReader(""), fullDisk{}, &notes); status != 1 || !strings.Contains(notes.String(), "no space left") {
			t.Errorf("meshctl %s: status %d, said %q", line, status, notes.String())
		}
	}
}
