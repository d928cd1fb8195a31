package bundle

import (
	"context"
	"fmt"

	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// servesClusterBundles asks the API server whether it has ClusterTrustBundles: they are beta, and off unless switched on.
func (c *Controller) servesClusterBundles() bool {
	list, err := c.client.Discovery().ServerResourcesForGroupVersion(certificatesv1beta1.SchemeGroupVersion.String())
	if err != nil {
		return false
	}
	for _, r := range list.APIResources {
		if r.Name == "clustertrustbundles" {
			return true
		}
	}
	return false
}

// syncClusterBundle writes the ClusterTrustBundle. It is looked at when the bundle changes and when Citadel begins to
// lead, not watched: who may change it may change Citadel's other objects too.
func (s *session) syncClusterBundle(ctx context.Context) error {
	bundles := s.client.CertificatesV1beta1().ClusterTrustBundles()
	want := &certificatesv1beta1.ClusterTrustBundle{
		ObjectMeta: metav1.ObjectMeta{Name: mesh.ClusterTrustBundle, Labels: map[string]string{mesh.PartOfLabel: mesh.PartOfValue}},
		Spec:       certificatesv1beta1.ClusterTrustBundleSpec{SignerName: mesh.ClusterBundleSigner, TrustBundle: string(s.trust.Current().RootsPEM)},
	}
	existing, err := bundles.Get(ctx, mesh.ClusterTrustBundle, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = bundles.Create(ctx, want, metav1.CreateOptions{FieldManager: mesh.FieldManager})
	case err == nil && existing.Spec.TrustBundle == want.Spec.TrustBundle:
		return nil
	case err == nil:
		existing = existing.DeepCopy()
		existing.Spec.TrustBundle = want.Spec.TrustBundle
		_, err = bundles.Update(ctx, existing, metav1.UpdateOptions{FieldManager: mesh.FieldManager})
	}
	if err != nil {
		return fmt.Errorf("ClusterTrustBundle %s: %w", mesh.ClusterTrustBundle, err)
	}
	s.wrote(clusterWide)
	return nil
}
