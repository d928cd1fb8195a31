package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

var trustDomain = spiffeid.RequireTrustDomainFromString(mesh.DefaultTrustDomain)

// trustBundle is the bundle as the mesh publishes it in its own namespace.
func trustBundle(ctx context.Context) (*spiffebundle.Bundle, error) {
	published, err := cluster.CoreV1().ConfigMaps(mesh.Namespace).Get(ctx, mesh.TrustBundleConfig, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return svid.ParseDocument(trustDomain, []byte(published.Data[mesh.BundleKey]))
}

// published is what a bundle said at one moment.
type published struct {
	sequence uint64
	roots    string // a hash of them
}

// publishedBundle returns the bundle, which must be the same in the ConfigMap, at the bundle endpoint and, on clusters
// that have ClusterTrustBundles, in the mesh's.
func publishedBundle(ctx context.Context) (published, error) {
	bundle, err := trustBundle(ctx)
	if err != nil {
		return published{}, err
	}
	served, err := fetchBundle(ctx, bundle)
	if err != nil {
		return published{}, fmt.Errorf("bundle endpoint: %w", err)
	}
	if !served.Equal(bundle) {
		return published{}, errors.New("the bundle endpoint does not serve what is in the ConfigMap")
	}
	out := published{roots: hash(bundle.X509Authorities())}
	out.sequence, _ = bundle.SequenceNumber()
	resources, err := cluster.Discovery().ServerResourcesForGroupVersion(certificatesv1beta1.SchemeGroupVersion.String())
	if err != nil || !slices.ContainsFunc(resources.APIResources, func(r metav1.APIResource) bool { return r.Name == "clustertrustbundles" }) {
		return out, nil // a cluster without them
	}
	wide, err := cluster.CertificatesV1beta1().ClusterTrustBundles().Get(ctx, mesh.ClusterTrustBundle, metav1.GetOptions{})
	if err != nil {
		return published{}, err
	}
	var roots []*x509.Certificate
	for block, rest := pem.Decode([]byte(wide.Spec.TrustBundle)); block != nil; block, rest = pem.Decode(rest) {
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return published{}, err
		}
		roots = append(roots, root)
	}
	if hash(roots) != out.roots {
		return published{}, fmt.Errorf("the cluster trust bundle has %d roots, others than the ConfigMap", len(roots))
	}
	return out, nil
}

func hash(certs []*x509.Certificate) string {
	h := sha256.New()
	for _, c := range certs {
		h.Write(c.Raw)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// fetchBundle asks the bundle endpoint as another trust domain's server does.
func fetchBundle(ctx context.Context, known *spiffebundle.Bundle) (*spiffebundle.Bundle, error) {
	pods, err := cluster.Component(ctx, "citadel")
	if err != nil {
		return nil, err
	}
	address, stop, err := cluster.Forward(ctx, &pods[0], mesh.BundlePort)
	if err != nil {
		return nil, err
	}
	defer stop()
	citadel, err := spiffe.New(mesh.DefaultTrustDomain, mesh.Namespace, mesh.CitadelAccount)
	if err != nil {
		return nil, err
	}
	id, err := spiffeid.FromString(citadel.String())
	if err != nil {
		return nil, err
	}
	return federation.FetchBundle(ctx, trustDomain, "https://"+address, federation.WithSPIFFEAuth(known.X509Bundle(), id))
}
