package origin

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// The real API server has its own opinion of requests, approvals and certificates.
func TestUpstreamSignerOfARealAPIServer(t *testing.T) {
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
	signer := fmt.Sprintf("bulwark.test/corporate-%d", time.Now().UnixNano())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	requests := client.CertificatesV1().CertificateSigningRequests()
	t.Cleanup(func() {
		list, err := requests.List(context.Background(), metav1.ListOptions{FieldSelector: "spec.signerName=" + signer})
		if err != nil {
			t.Error(err)
			return
		}
		for _, r := range list.Items {
			if err := requests.Delete(context.Background(), r.Name, metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		}
	})
	up := newCorporate(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if err := approveAndSign(ctx, client, signer, up); err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	o := origins(client)
	o.Upstream.Signer = signer
	got, err := o.request(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got.Origin != rotate.Upstream || len(got.Material.Key) == 0 {
		t.Fatalf("%+v", got.Origin)
	}
}

// approveAndSign is what an approver and cert-manager do with the one request for a signer.
func approveAndSign(ctx context.Context, client kubernetes.Interface, signer string, up *corporate) error {
	requests := client.CertificatesV1().CertificateSigningRequests()
	for {
		list, err := requests.List(ctx, metav1.ListOptions{FieldSelector: "spec.signerName=" + signer})
		if err != nil {
			return err
		}
		if len(list.Items) == 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		r := &list.Items[0]
		if r.Labels[mesh.PartOfLabel] != mesh.PartOfValue || r.Annotations["experimental.cert-manager.io/request-is-ca"] != "true" {
			return fmt.Errorf("the request does not say what it is for: %v %v", r.Labels, r.Annotations)
		}
		r.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test", Message: "approved by a test"}}
		if r, err = requests.UpdateApproval(ctx, r.Name, r, metav1.UpdateOptions{}); err != nil {
			return err
		}
		if r.Status.Certificate, err = up.sign(r.Spec.Request, nil); err != nil {
			return err
		}
		_, err = requests.UpdateStatus(ctx, r, metav1.UpdateOptions{})
		return err
	}
}
