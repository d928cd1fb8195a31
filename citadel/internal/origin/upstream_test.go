package origin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// corporate is a signer of the CertificateSigningRequest API, as cert-manager has them.
type corporate struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newCorporate(t *testing.T) *corporate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Corporate root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(100 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &corporate{key, cert}
}

// sign answers a request, after a change of what it would have answered.
func (c *corporate) sign(request []byte, change func(*x509.Certificate)) ([]byte, error) {
	block, _ := pem.Decode(request)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: csr.Subject, URIs: csr.URIs, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(10 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	// A signer that heeds what is asked for.
	for _, e := range csr.Extensions {
		if e.Id.String() == "2.5.29.30" || e.Id.String() == "2.5.29.19" {
			template.ExtraExtensions = append(template.ExtraExtensions, e)
		}
	}
	if change != nil {
		template.ExtraExtensions = nil
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, csr.PublicKey, c.key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), ca.EncodeCerts([]*x509.Certificate{c.cert})...), nil
}

// serves answers the first request for a signer with what answer makes of it.
func serves(t *testing.T, client kubernetes.Interface, signer string, answer func(*certificatesv1.CertificateSigningRequest) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			list, err := client.CertificatesV1().CertificateSigningRequests().List(ctx, metav1.ListOptions{})
			if err == nil {
				for i := range list.Items {
					if r := &list.Items[i]; r.Spec.SignerName == signer && len(r.Status.Certificate) == 0 && len(r.Status.Conditions) == 0 {
						r.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue}}
						if err := answer(r); err != nil {
							t.Error(err)
						}
						if _, err := client.CertificatesV1().CertificateSigningRequests().UpdateStatus(ctx, r, metav1.UpdateOptions{}); err != nil && ctx.Err() == nil {
							t.Error(err)
						}
						return
					}
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

const signerName = "issuers.example/corporate"

func origins(client kubernetes.Interface) *Origins {
	return &Origins{
		Client: client, Rotation: rotate.Config{TrustDomain: "cluster.local", KeyType: ca.P256, RootTTL: time.Hour},
		Upstream: UpstreamConfig{Signer: signerName, TTL: 24 * time.Hour}, Clock: clock.RealClock{},
	}
}

func TestUpstreamSignerCertifiesCitadelsKey(t *testing.T) {
	client, up := fake.NewClientset(), newCorporate(t)
	serves(t, client, signerName, func(r *certificatesv1.CertificateSigningRequest) (err error) {
		r.Status.Certificate, err = up.sign(r.Spec.Request, nil)
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	got, err := origins(client).First(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got.Origin != rotate.Upstream || string(got.Material.Root) != string(ca.EncodeCerts([]*x509.Certificate{up.cert})) {
		t.Fatalf("origin %s", got.Origin)
	}
	authority, err := rotate.Usable(got.Material, "cluster.local", clock.RealClock{})
	if err != nil {
		t.Fatal(err)
	}
	cert := authority.Certificate()
	if len(cert.PermittedURIDomains) != 1 || cert.PermittedURIDomains[0] != "cluster.local" || !cert.PermittedDNSDomainsCritical || !cert.MaxPathLenZero {
		t.Errorf("the intermediate is not held to its trust domain and to leaves: %v, path length %d", cert.PermittedURIDomains, cert.MaxPathLen)
	}
	if !authority.Constrained() {
		t.Error("is not seen as constrained")
	}
	if _, err := rotate.Usable(got.Material, "elsewhere.example", clock.RealClock{}); err == nil {
		t.Error("the name constraint holds nobody")
	}
}

func TestUselessAnswersOfASignerAreRefused(t *testing.T) {
	up := newCorporate(t)
	for name, c := range map[string]struct {
		answer func(*certificatesv1.CertificateSigningRequest) error
		says   string
	}{
		"a leaf": {func(r *certificatesv1.CertificateSigningRequest) (err error) {
			r.Status.Certificate, err = up.sign(r.Spec.Request, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature })
			return err
		}, "may not sign"},
		"a CA of another trust domain": {func(r *certificatesv1.CertificateSigningRequest) (err error) {
			r.Status.Certificate, err = up.sign(r.Spec.Request, func(c *x509.Certificate) {
				c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{"elsewhere.example"}, true
			})
			return err
		}, "does not verify"},
		"a denial": {func(r *certificatesv1.CertificateSigningRequest) error {
			r.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateDenied, Status: corev1.ConditionTrue, Message: "not today"}}
			return nil
		}, "not today"},
		"rubbish": {func(r *certificatesv1.CertificateSigningRequest) error {
			r.Status.Certificate = []byte("rubbish")
			return nil
		}, "not PEM"},
		"no root": {func(r *certificatesv1.CertificateSigningRequest) error {
			chain, err := up.sign(r.Spec.Request, nil)
			if err == nil {
				block, _ := pem.Decode(chain)
				r.Status.Certificate = pem.EncodeToMemory(block)
			}
			return err
		}, "upstreamRoots"},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			serves(t, client, signerName, c.answer)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if _, err := origins(client).Next(ctx); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want it to say %q", err, c.says)
			}
		})
	}
}

func TestRootsThatAnOperatorNamesAreUsed(t *testing.T) {
	up := newCorporate(t)
	named := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "corporate-roots", Namespace: mesh.Namespace},
		Data: map[string]string{mesh.RootCertKey: string(ca.EncodeCerts([]*x509.Certificate{up.cert}))}}
	client := fake.NewClientset(named)
	serves(t, client, signerName, func(r *certificatesv1.CertificateSigningRequest) error {
		chain, err := up.sign(r.Spec.Request, nil)
		if err != nil {
			return err
		}
		block, _ := pem.Decode(chain)
		r.Status.Certificate = pem.EncodeToMemory(block)
		if len(r.Status.Certificate) == 0 {
			return fmt.Errorf("no certificate")
		}
		return nil
	})
	o := origins(client)
	o.Upstream.Roots = named.Name
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := o.Next(ctx); err != nil {
		t.Fatal(err)
	}
}
