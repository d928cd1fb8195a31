package secrets

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Kubernetes admits accounts of 253 bytes, and names of Secrets no longer than that.
func TestAnAccountOfAnyLengthHasItsSecret(t *testing.T) {
	w := newWorld(t)
	for i, name := range []string{strings.Repeat("a", 245), strings.Repeat("a", 246), strings.Repeat("b", 253)} {
		uid := fmt.Sprint("long", i)
		if _, err := w.client.CoreV1().ServiceAccounts("finance").Create(context.Background(), account("finance", name, uid), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, fmt.Sprintf("an account of %d bytes has its Secret", len(name)), func() bool { return w.good("finance", name, uid) })
		// One that was damaged is found by its name, which does not tell the account.
		s := w.get("finance", name)
		if len(s.Name) > 253 { // which the API server would refuse
			t.Errorf("the Secret's name has %d bytes", len(s.Name))
		}
		s.Data, s.OwnerReferences = nil, nil
		w.update(s)
		eventually(t, "it is restored", func() bool { return w.good("finance", name, uid) })
	}
}

// Whoever checks an installation asks who is to have a Secret, so that there are not two rules.
func TestWantedIsWhoHasASecret(t *testing.T) {
	const revoked = "spiffe://cluster.local/ns/finance/sa/revoked"
	for name, c := range map[string]struct {
		optIn bool
		want  []string
	}{
		"all but those that opted out": {false, []string{"finance/payroll", "joined/a"}},
		"those that opted in":          {true, []string{"joined/a"}},
	} {
		w := newWorldOf(t, func(config *Config) {
			config.OptIn = c.optIn
			config.Denies = func(identity, _ string) bool { return identity == revoked }
		})
		ctx := context.Background()
		if _, err := w.client.CoreV1().Namespaces().Create(ctx, namespace("joined", map[string]string{mesh.SecretsLabel: "enabled"}), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, sa := range []*corev1.ServiceAccount{account("finance", "revoked", "u3"), account("joined", "a", "u4")} {
			if _, err := w.client.CoreV1().ServiceAccounts(sa.Namespace).Create(ctx, sa, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		var got, have []string
		eventually(t, name, func() bool {
			got, have = nil, nil
			for _, a := range w.ctl.Wanted() {
				got = append(got, a.Namespace+"/"+a.ServiceAccount)
				if w.get(a.Namespace, a.ServiceAccount) != nil && a.Secret == mesh.SecretName(a.ServiceAccount) {
					have = append(have, a.Namespace+"/"+a.ServiceAccount)
				}
			}
			slices.Sort(got)
			slices.Sort(have)
			return slices.Equal(got, c.want) && slices.Equal(have, c.want)
		})
		all, err := w.client.CoreV1().Secrets("").List(ctx, metav1.ListOptions{})
		if err != nil || len(all.Items) != len(c.want) {
			t.Errorf("%s: %d Secrets, %v", name, len(all.Items), err)
		}
	}
}
