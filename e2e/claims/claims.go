// Package claims holds what Bulwark promises, each promise as a function that tries it with real traffic between pods.
// The demo prints them as a table; the end-to-end tests run each in namespaces of its own.
package claims

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/manifests"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Claim is one promise. Run returns what happened, for a person; an error means that the promise was not kept.
type Claim struct {
	Number int
	Title  string
	Tried  string
	Run    func(context.Context, *Scene) (happened string, err error)
}

// All are the promises in the order of their numbers.
var All = []Claim{
	{1, "every service account has its identity", "certificate, key and chain of every service account's Secret, old and new", EveryAccountHasItsIdentity},
	{2, "only the auditor may read accounts", "GET, POST, gRPC and TCP as account-auditor and as web, over HTTP/1.1 and HTTP/2", OnlyTheAuditorMayRead},
	{3, "the wire is TLS 1.3 from both sides", "packets captured on payroll's interface while it is read", TheWireIsTLS13},
	{4, "strangers are refused", "no certificate, a certificate of another CA, and plaintext, under STRICT", StrangersAreRefused},
	{5, "an impostor is refused", "a pod with an identity of its own behind payroll's address", AnImpostorIsRefused},
	{6, "certificates rotate under traffic", "requests without pause until client and server have new serial numbers", CertificatesRotate},
	{7, "a changed policy is enforced", "a policy applied and deleted while its subject goes on asking", AChangedPolicyIsEnforced},
	{8, "the audit trail has every decision", "each kind of decision looked up; Mixer away for 20 s under traffic", TheAuditTrailIsComplete},
	{9, "a token is demanded and verified", "tokens of an issuer: good, none, changed, expired, for others, without the role", ATokenIsDemanded},
	{10, "a denied request is explained", "meshctl authz explain --event of two denials, and what it prints applied", ADenialIsExplained},
}

// Scene is the sample, deployed: namespaces in which a claim is tried.
type Scene struct {
	*lab.Lab
	Namespace string // payroll, account-auditor and web, in the mesh
	Outside   string // a stranger, not in the mesh
}

const readyLimit = 2 * time.Minute

// Deploy deploys the sample into a namespace, which gets the labels ("key: value") besides its own, and a stranger into
// another, and waits until all pods are ready.
func Deploy(ctx context.Context, l *lab.Lab, namespace string, labels ...string) (*Scene, error) {
	content, err := manifests.Samples.ReadFile("samples/finance.yaml")
	if err != nil {
		return nil, err
	}
	s := &Scene{Lab: l, Namespace: namespace, Outside: namespace + "-outside"}
	const own = "istio-injection: enabled"
	manifest := string(content)
	if slices.ContainsFunc(labels, func(l string) bool { return strings.HasPrefix(l, enforce) }) {
		manifest = strings.Replace(manifest, ", "+enforce+": restricted", "", 1)
	}
	manifest = strings.Replace(manifest, own, strings.Join(append([]string{own}, labels...), ", "), 1)
	// What claims add for a while, a run that was killed has left. Nothing else of the namespaces is touched: they may be a
	// user's.
	for _, added := range []string{impostor, fmt.Sprintf(rogueSlice, "192.0.2.1"), webMayRead, tokenPolicies, issuerWorkload} {
		if err := l.Delete(ctx, s.Local(added)); err != nil {
			return nil, fmt.Errorf("removing what an earlier run has left: %w", err)
		}
	}
	if err := s.removeExplained(ctx); err != nil {
		return nil, fmt.Errorf("removing what an earlier run has left: %w", err)
	}
	if err := s.restart(ctx); err != nil {
		return nil, fmt.Errorf("removing what an earlier run has left: %w", err)
	}
	if err := l.Apply(ctx, s.Local(manifest)); err != nil {
		return nil, fmt.Errorf("deploying the sample: %w", err)
	}
	if err := l.Apply(ctx, s.Local(outside)); err != nil {
		return nil, fmt.Errorf("deploying the stranger: %w", err)
	}
	for _, n := range []string{s.Namespace, s.Outside} {
		if err := l.Ready(ctx, n, readyLimit); err != nil {
			return nil, fmt.Errorf("waiting for the sample: %w", err)
		}
	}
	return s, nil
}

// restart deletes the sample's pods of an earlier run, and waits until they are gone: what a run that was killed had begun in them
// with kubectl exec goes on there.
func (s *Scene) restart(ctx context.Context) error {
	old := map[types.UID]bool{}
	sample := metav1.ListOptions{LabelSelector: "app in (payroll, account-auditor, web, stranger)"}
	for _, namespace := range []string{s.Namespace, s.Outside} {
		pods, err := s.CoreV1().Pods(namespace).List(ctx, sample)
		if err != nil {
			return err
		}
		for _, pod := range pods.Items {
			old[pod.UID] = true
		}
		if err := s.CoreV1().Pods(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, sample); err != nil {
			return err
		}
	}
	return lab.PollFor(ctx, readyLimit, func(ctx context.Context) error {
		for _, namespace := range []string{s.Namespace, s.Outside} {
			pods, err := s.CoreV1().Pods(namespace).List(ctx, sample)
			if err != nil {
				return err
			}
			for _, pod := range pods.Items {
				if old[pod.UID] {
					return fmt.Errorf("pod %s/%s of an earlier run is still there", namespace, pod.Name)
				}
			}
		}
		return nil
	})
}

// Remove deletes the scene's namespaces.
func (s *Scene) Remove(ctx context.Context) error {
	return s.DeleteNamespaces(ctx, s.Namespace, s.Outside)
}

// Local puts the scene's namespaces and the version's images into a manifest of the sample.
func (s *Scene) Local(manifest string) string {
	return strings.NewReplacer("finance", s.Namespace, "bulwark/sample:dev", "bulwark/sample:"+s.Tag).Replace(manifest)
}

// ID returns the SPIFFE ID of a service account of the scene.
func (s *Scene) ID(account string) string {
	return spiffe.ID{TrustDomain: mesh.DefaultTrustDomain, Namespace: s.Namespace, ServiceAccount: account}.String()
}

// URL is a path of payroll.
func (s *Scene) URL(path string) string { return "http://payroll." + s.Namespace + path }

// Container is the name of an app's container.
func (s *Scene) Container(app string) string {
	if app == "payroll" {
		return app
	}
	return "client"
}

// Get makes a request as an account of the scene.
func (s *Scene) Get(ctx context.Context, account, url string, flags ...string) (sample.Response, error) {
	return lab.ExecJSON[sample.Response](ctx, s.Lab, s.Namespace, account, "client", append([]string{"sample", "get", url}, flags...)...)
}

const outside = `
apiVersion: v1
kind: Namespace
metadata: {name: finance-outside}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: stranger, namespace: finance-outside}
spec:
  selector: {matchLabels: {app: stranger}}
  template:
    metadata: {labels: {app: stranger}}
    spec:
      terminationGracePeriodSeconds: 2
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: client
          image: docker.io/bulwark/sample:dev
          imagePullPolicy: IfNotPresent
          args: [wait]
          securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
`
