package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/pager"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/identities"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/operator"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// callLimit bounds all that one component is asked.
const callLimit = 15 * time.Second

// atOnce bounds the components that are asked at a time.
const atOnce = 16

// gathering asks the whole mesh. What does not answer is in troubles, and the rest is there all the same.
type gathering struct {
	client *kube.Client
	access *operator.Access
	filter identities.Filter // what it cannot pass is not asked for

	mu        sync.Mutex
	entries   []identities.Entry
	schedule  map[string]identities.Scheduled // by namespace/account
	revoked   revocation.List
	asked     bool // whether a Citadel has said what is revoked
	secrets   []*corev1.Secret
	troubles  []error
	unchecked error // why nothing can be marked as revoked
}

// gather returns every certificate of the mesh that the filter may pass.
func gather(ctx context.Context, client *kube.Client, access *operator.Access, filter identities.Filter) (*gathering, error) {
	ready, others, err := operator.Everyone(ctx, client)
	if err != nil {
		return nil, err
	}
	g := &gathering{client: client, access: access, filter: filter, schedule: map[string]identities.Scheduled{}}
	for _, pod := range others {
		g.trouble(fmt.Errorf("%s %s on node %q is not ready: what it holds is not shown", operator.Component(&pod), pod.Name, pod.Spec.NodeName))
	}
	group := errgroup.Group{}
	group.SetLimit(atOnce)
	for _, pod := range ready {
		group.Go(func() error { g.ask(ctx, &pod); return nil })
	}
	if filter.Wants(identities.Secret) {
		g.listSecrets(ctx)
	}
	_ = group.Wait() // nothing in it fails; troubles are kept
	now := time.Now()
	for _, s := range g.secrets {
		account := identities.SecretAccount(s)
		g.entries = append(g.entries, identities.OfSecret(s, g.schedule[s.Namespace+"/"+account], access.TrustDomain(), now))
	}
	if !g.asked {
		g.trouble(fmt.Errorf("who is revoked is not known: %w", cmp.Or(g.unchecked, errors.New("no Citadel could be asked"))))
	}
	identities.Mark(g.entries, g.revoked, now)
	g.entries = filter.Apply(g.entries)
	identities.Sort(g.entries)
	return g, nil
}

func (g *gathering) trouble(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.troubles = append(g.troubles, err)
}

// ask asks one component for its own certificate and for what it knows of others.
func (g *gathering) ask(ctx context.Context, pod *corev1.Pod) {
	component := operator.Component(pod)
	wanted := g.filter.Wants(identities.Component) || component == "citadel" || (component == "agent" && g.filter.Wants(identities.Pod))
	if !wanted {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	conn, err := g.access.Connect(ctx, pod)
	if err != nil {
		g.trouble(err)
		return
	}
	defer conn.Close()
	if leaf, err := conn.Certificate(ctx); err != nil {
		g.trouble(fmt.Errorf("%s %s: %w", component, pod.Name, err))
		return
	} else if g.filter.Wants(identities.Component) {
		g.add(identities.OfComponent(pod, leaf, time.Now()))
	}
	switch component {
	case "agent":
		g.askAgent(ctx, conn, pod)
	case "citadel":
		g.askCitadel(ctx, conn, pod)
	}
}

func (g *gathering) add(entries ...identities.Entry) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.entries = append(g.entries, entries...)
}

func (g *gathering) askAgent(ctx context.Context, conn *operator.Connection, pod *corev1.Pod) {
	var workloads []identities.Workload
	if err := conn.GetJSON(ctx, "/v1/workloads", &workloads); err != nil {
		g.trouble(fmt.Errorf("asking agent %s of node %s: %w", pod.Name, pod.Spec.NodeName, err))
		return
	}
	for _, w := range workloads {
		g.add(identities.OfWorkload(w, pod.Spec.NodeName))
	}
}

// askCitadel asks any replica who is revoked; only the one that leads knows when Secrets are renewed.
func (g *gathering) askCitadel(ctx context.Context, conn *operator.Connection, pod *corev1.Pod) {
	var list revocation.List
	var schedule []identities.Scheduled
	err := conn.GetJSON(ctx, "/v1/revocations", &list)
	if err == nil && g.filter.Wants(identities.Secret) {
		if err := conn.GetJSON(ctx, "/v1/secrets", &schedule); err != nil {
			g.trouble(fmt.Errorf("asking Citadel %s when Secrets are renewed: %w", pod.Name, err))
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		g.unchecked = errors.Join(g.unchecked, fmt.Errorf("asking Citadel %s: %w", pod.Name, err))
		return
	}
	g.revoked, g.asked = list, true
	for _, s := range schedule {
		g.schedule[s.Namespace+"/"+s.ServiceAccount] = s
	}
}

// listSecrets reads the workload Secrets in pages. Their keys come along, and are dropped at once.
func (g *gathering) listSecrets(ctx context.Context) {
	list := pager.New(pager.SimplePageFunc(func(o metav1.ListOptions) (runtime.Object, error) {
		return g.client.CoreV1().Secrets(g.filter.Namespace).List(ctx, o)
	}))
	err := list.EachListItem(ctx, metav1.ListOptions{FieldSelector: "type=" + mesh.SecretType, LabelSelector: mesh.PartOfLabel + "=" + mesh.PartOfValue}, func(o runtime.Object) error {
		s, ok := o.(*corev1.Secret)
		if ok && mesh.IsSecretName(s.Name) {
			delete(s.Data, mesh.PrivateKeyKey)
			g.secrets = append(g.secrets, s)
		}
		return nil
	})
	switch {
	case apierrors.IsForbidden(err):
		g.trouble(fmt.Errorf("workload Secrets are not shown: you need the right `list secrets` %s", where(g.filter.Namespace)))
	case err != nil:
		g.trouble(fmt.Errorf("listing workload Secrets: %w", err))
	}
}

func where(namespace string) string {
	if namespace == "" {
		return "in all namespaces; with -n NAMESPACE in that one, with --held-by pod in none"
	}
	return "in namespace " + namespace
}
