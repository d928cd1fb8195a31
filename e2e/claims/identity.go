package claims

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// EveryAccountHasItsIdentity is claim 1.
func EveryAccountHasItsIdentity(ctx context.Context, s *Scene) (string, error) {
	accounts := s.CoreV1().ServiceAccounts(s.Namespace)
	began := time.Now()
	newcomer, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{GenerateName: "newcomer-"}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	defer func() { _ = accounts.Delete(context.WithoutCancel(ctx), newcomer.Name, metav1.DeleteOptions{}) }() // the next run has another
	err = lab.PollFor(ctx, 10*time.Second, func(ctx context.Context) error { return s.SecretIsSound(ctx, s.Namespace, newcomer.Name) })
	if err != nil {
		return "", err
	}
	took := time.Since(began)
	bundle, err := s.bundleOfNewNamespace(ctx)
	if err != nil {
		return "", err
	}
	if max(took, bundle) > identityLimit {
		return "", fmt.Errorf("a new account's Secret was there after %s and a new namespace's trust bundle after %s, want %s at most", took, bundle, identityLimit)
	}
	namespaces, err := s.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: mesh.SecretsLabel + "!=disabled"})
	if err != nil {
		return "", err
	}
	count := 0
	for _, namespace := range namespaces.Items {
		if namespace.DeletionTimestamp != nil {
			continue
		}
		accounts, err := s.CoreV1().ServiceAccounts(namespace.Name).List(ctx, metav1.ListOptions{})
		if err != nil {
			return "", err
		}
		for _, account := range accounts.Items {
			if account.DeletionTimestamp != nil {
				continue
			}
			if err := s.SecretIsSound(ctx, account.Namespace, account.Name); err != nil {
				return "", err
			}
			count++
		}
	}
	return fmt.Sprintf("%d accounts, each with its own; a new one's after %d ms, the trust bundle of a new namespace after %d ms", count, took.Milliseconds(), bundle.Milliseconds()), nil
}

// identityLimit is how long a new account may be without its Secret, and a new namespace without the trust bundle.
const identityLimit = time.Second

// bundleOfNewNamespace returns after which time a new namespace has the trust bundle.
func (s *Scene) bundleOfNewNamespace(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	created, err := s.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: s.Namespace + "-new-"}}, metav1.CreateOptions{})
	if err != nil {
		return 0, err
	}
	name := created.Name
	err = lab.PollFor(ctx, 10*time.Second, func(ctx context.Context) error {
		_, err := s.CoreV1().ConfigMaps(name).Get(ctx, mesh.TrustBundleConfig, metav1.GetOptions{})
		return err
	})
	took := time.Since(began)
	return took, errors.Join(err, s.DeleteNamespaces(context.WithoutCancel(ctx), name))
}

// SecretIsSound checks the Secret of an account against the root that the mesh publishes.
func (s *Scene) SecretIsSound(ctx context.Context, namespace, account string) error {
	name := mesh.SecretName(account)
	secret, err := s.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("service account %s/%s: %w", namespace, account, err)
	}
	bundle, err := s.CoreV1().ConfigMaps(namespace).Get(ctx, mesh.TrustBundleConfig, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("trust bundle of namespace %s: %w", namespace, err)
	}
	fail := func(what string, args ...any) error {
		return fmt.Errorf("Secret %s/%s: %s", namespace, name, fmt.Sprintf(what, args...))
	}
	if string(secret.Type) != mesh.SecretType {
		return fail("type %s", secret.Type)
	}
	pair, err := tls.X509KeyPair(secret.Data[mesh.CertChainKey], secret.Data[mesh.PrivateKeyKey])
	if err != nil {
		return fail("%v", err)
	}
	leaf := pair.Leaf
	want := spiffe.ID{TrustDomain: mesh.DefaultTrustDomain, Namespace: namespace, ServiceAccount: account}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != want.String() {
		return fail("URI SANs %v, want only %s", leaf.URIs, want)
	}
	if _, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok {
		return fail("key is %T", leaf.PublicKey)
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(bundle.Data[mesh.RootCertKey])) {
		return fail("the trust bundle holds no certificate")
	}
	for _, der := range pair.Certificate[1:] {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fail("%v", err)
		}
		intermediates.AddCert(cert)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return fail("does not chain to the mesh's root: %v", err)
	}
	return nil
}

// Held is the part of `meshctl identity -o json` that is looked at here.
type Held struct {
	Identity  string    `json:"identity"`
	Serial    string    `json:"serial"`
	NotAfter  time.Time `json:"notAfter"`
	State     string    `json:"state"`
	LastError string    `json:"lastError"`
}

// Held returns what certificate a pod of an app of the scene has, as a user sees it.
func (s *Scene) Held(ctx context.Context, app string) (Held, error) {
	var h Held
	out, err := s.Meshctl(ctx, "identity", "-n", s.Namespace, "deploy/"+app, "-o", "json")
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(out, &h); err != nil {
		return h, err
	}
	if h.Identity != s.ID(app) {
		return h, fmt.Errorf("pod of %s has identity %s", app, h.Identity)
	}
	return h, nil
}

// rotationLimit is how long a certificate of the demo's and the tests' lifetime takes at most to be replaced.
const rotationLimit = 100 * time.Second

// CertificatesRotate is claim 6. It needs a mesh with certificates of a minute or so.
func CertificatesRotate(ctx context.Context, s *Scene) (string, error) {
	apps := []string{"account-auditor", "payroll"}
	before := map[string]Held{}
	for _, app := range apps {
		h, err := s.Held(ctx, app)
		if err != nil {
			return "", err
		}
		if left := time.Until(h.NotAfter); left > rotationLimit {
			return "", fmt.Errorf("certificate of %s lives for another %s: install with --set citadel.workloadTTL=1m to see it rotate", app, left.Round(time.Second))
		}
		before[app] = h
	}
	ctx, cancel := context.WithTimeout(ctx, rotationLimit)
	defer cancel()
	type outcome struct {
		result sample.LoadResult
		err    error
	}
	// Load in pieces of a few seconds, so that it ends soon after both have rotated; new connections and kept ones.
	results := make(chan outcome)
	rotated := make(chan struct{})
	for _, kept := range []bool{true, false} {
		go func() {
			var total outcome
			total.result.Outcomes = map[string]int{}
			for last := false; !last; {
				select {
				case <-rotated:
					last = true // one more piece with the new certificates
				default:
				}
				flags := []string{"sample", "load", s.URL("/accounts/42"), "--duration=3s", "--interval=5ms"}
				if !kept {
					flags = append(flags, "--new-connections")
				}
				piece, err := lab.ExecJSON[sample.LoadResult](ctx, s.Lab, s.Namespace, "account-auditor", "client", flags...)
				if err != nil {
					total.err = err
					break
				}
				total.result.Requests += piece.Requests
				for code, n := range piece.Outcomes {
					total.result.Outcomes[code] += n
				}
				total.result.Errors = append(total.result.Errors, piece.Errors...)
			}
			results <- total
		}()
	}
	began := time.Now()
	changed := lab.Poll(ctx, func(ctx context.Context) error {
		for _, app := range apps {
			h, err := s.Held(ctx, app)
			if err != nil {
				return err
			}
			if h.Serial == before[app].Serial {
				return fmt.Errorf("%s still has serial %s", app, h.Serial)
			}
		}
		return nil
	})
	took := time.Since(began)
	close(rotated)
	requests := 0
	for range 2 {
		o := <-results
		if o.err != nil {
			return "", o.err
		}
		if n := o.result.Outcomes["200"]; n != o.result.Requests || n == 0 {
			return "", fmt.Errorf("outcomes %v of %d requests: %v", o.result.Outcomes, o.result.Requests, o.result.Errors)
		}
		requests += o.result.Requests
	}
	if changed != nil {
		return "", changed
	}
	return fmt.Sprintf("both new after %.0f s, %d requests, 0 failed", took.Seconds(), requests), nil
}
