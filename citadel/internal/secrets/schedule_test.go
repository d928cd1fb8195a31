package secrets

import (
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
)

func TestScheduleSaysWhenSecretsAreRenewedAndWhatFails(t *testing.T) {
	w := newWorld(t)
	eventually(t, "a Secret", func() bool { return len(w.ctl.Schedule()) == 1 })
	got := w.ctl.Schedule()[0]
	if left := got.NextRenewal.Sub(w.clock.Now()); got.Namespace != "finance" || got.ServiceAccount != "payroll" || got.LastError != "" || left < 9*time.Hour || left > 15*time.Hour {
		t.Fatalf("%+v", got)
	}
	w.client.PrependReactor("create", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("quota is full")
	})
	if err := w.client.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("secrets"), "finance", "bulwark.payroll"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a failure", func() bool {
		all := w.ctl.Schedule()
		return len(all) == 1 && strings.Contains(all[0].LastError, "quota is full")
	})
	w.stop()
	if got := w.ctl.Schedule(); got == nil || len(got) > 0 {
		t.Fatalf("without leading: %v", got)
	}
}
