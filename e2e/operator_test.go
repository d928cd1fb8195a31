package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// Who has nothing but the Role bulwark-operator can do with meshctl what it is for, and cannot read the CA's key.
func TestOperatorNeedsNoMoreThanItsRole(t *testing.T) {
	prove(t, "operator", func(ctx context.Context, s *claims.Scene) (string, error) {
		kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
		if err := person(ctx, s, "operator", kubeconfig); err != nil {
			return "", err
		}
		meshctl := func(args ...string) (string, error) {
			out, err := s.Meshctl(ctx, append([]string{"--kubeconfig", kubeconfig}, args...)...)
			return string(out), err
		}
		if out, err := meshctl("ca", "status"); err == nil || !strings.Contains(err.Error(), "forbidden") || strings.Count(err.Error(), "\n") > 0 {
			return "", fmt.Errorf("without the role, ca status says %q, %v", out, err)
		}
		binding := &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{GenerateName: s.Namespace + "-", Namespace: mesh.Namespace},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "bulwark-operator"},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: s.Namespace, Name: "operator"}},
		}
		bindings := cluster.RbacV1().RoleBindings(mesh.Namespace)
		made, err := bindings.Create(ctx, binding, metav1.CreateOptions{})
		if err != nil {
			return "", err
		}
		t.Cleanup(func() { _ = bindings.Delete(context.WithoutCancel(ctx), made.Name, metav1.DeleteOptions{}) })
		if err := secretsAreOutOfReach(ctx, kubeconfig); err != nil {
			return "", err
		}
		victim := s.ID("account-auditor")
		t.Cleanup(func() {
			_ = changeRevocations(context.WithoutCancel(ctx), func(list revocation.List) revocation.List { return others(list, victim) })
		})
		for _, c := range []struct{ args, want string }{
			{"status", "payroll"},
			{"reach -n " + s.Namespace + " --to payroll", s.Namespace + "/account-auditor"},
			{"ca status", "Signer"},
			{"ca rotate --status", ""},
			{"identity list --held-by pod -n " + s.Namespace, "payroll"},
			{"identity revoke " + victim + " --reason test", "revoked"},
			{"identity revocations", "account-auditor"},
			{"identity restore NAME", ""},
			{"audit tail --last 500", "HTTPS Revoke"},
		} {
			args := strings.Fields(c.args)
			if args[len(args)-1] == "NAME" {
				if args[len(args)-1], err = revocationOf(meshctl, s.Namespace+"/account-auditor"); err != nil {
					return "", err
				}
			}
			err := lab.PollFor(ctx, 10*time.Second, func(context.Context) error { // the trail is a little behind
				out, err := meshctl(args...)
				if err != nil {
					return lab.Stop(err)
				}
				if !strings.Contains(strings.ToLower(out), strings.ToLower(c.want)) {
					return fmt.Errorf("meshctl %s says nothing of %q: %s", c.args, c.want, out)
				}
				return nil
			})
			if err != nil {
				return "", err
			}
		}
		return "status, reach, ca, identity and audit work; the CA's key is out of reach", nil
	})
}

func revocationOf(meshctl func(...string) (string, error), identity string) (string, error) {
	out, err := meshctl("identity", "revocations")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, identity) {
			return strings.Fields(line)[0], nil
		}
	}
	return "", fmt.Errorf("no revocation of %s in %s", identity, out)
}

// person makes a service account that stands for a person, and its kubeconfig.
func person(ctx context.Context, s *claims.Scene, name, kubeconfig string) error {
	accounts := s.CoreV1().ServiceAccounts(s.Namespace)
	if _, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	token, err := accounts.CreateToken(ctx, name, &authv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	ca := s.Config.CAData
	if len(ca) == 0 {
		if ca, err = os.ReadFile(s.Config.CAFile); err != nil {
			return err
		}
	}
	return clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: s.Config.Host, CertificateAuthorityData: ca, TLSServerName: s.Config.ServerName}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {Token: token.Status.Token}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, kubeconfig)
}

func secretsAreOutOfReach(ctx context.Context, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	if _, err := client.CoreV1().Secrets(mesh.Namespace).Get(ctx, mesh.CASecret, metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		return fmt.Errorf("the operator reads Secret %s: %v", mesh.CASecret, err)
	}
	return nil
}
