// Package world makes, in a real API server, the cluster that the load generator needs: nodes that no kubelet runs, pods
// that claim to run there, services, and policies. Everything bears one label, by which it is removed again.
//
// Each service has a workload of its own: pods with one service account and one set of labels, as a Deployment has them. The first workloads
// are those whose proxies are simulated.
package world

import (
	"context"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/bulwark-mesh/bulwark/tools/bench/tokens"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
)

const (
	label    = "bulwark.dev/load-test"
	value    = "xdsload"
	selector = label + "=" + value
)

// World is the client's side of it.
type World struct {
	Sizes
	kube    kubernetes.Interface
	alive   kubernetes.Interface // for the nodes' leases: what keeps them must not wait until everything is made
	dynamic dynamic.Interface
	issuer  tokens.Issuer
	uids    []string // of the pods with proxies, from when they are made
}

// New returns a world that is not made yet.
func New(config *rest.Config, s Sizes) (*World, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = 500, 500
	config.WarningHandler = rest.NoWarnings{} // the policies hold on TCP ports too, on purpose
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf
	issuer, err := tokens.New(jose.RS256)
	if err != nil {
		return nil, err
	}
	w := &World{Sizes: s, issuer: issuer, dynamic: dyn, uids: make([]string, s.Proxies())}
	for _, client := range []*kubernetes.Interface{&w.kube, &w.alive} {
		if *client, err = kubernetes.NewForConfig(config); err != nil {
			return nil, fmt.Errorf("client of the API server: %w", err)
		}
	}
	return w, nil
}

// Members are the pods whose proxies are simulated; they have UIDs when they are made.
func (w *World) Members() []fleet.Member {
	out := make([]fleet.Member, w.Proxies())
	for i := range out {
		out[i] = w.pod(i)
		out[i].UID = w.uids[i]
	}
	return out
}

// pod is the i-th. The pods of a workload follow each other, so they are on different nodes, as a scheduler spreads them.
func (w *World) pod(i int) fleet.Member {
	workload := i / w.Endpoints
	name := workloadName(workload)
	return fleet.Member{
		Namespace: w.namespaceOf(workload), Pod: fmt.Sprintf("%s-%d", name, i%w.Endpoints), Workload: name, ServiceAccount: name,
		IP: fmt.Sprintf("10.250.%d.%d", i/250, 1+i%250), Node: nodeName(i % w.Nodes),
	}
}

func (w *World) namespaceOf(workload int) string { return namespaceName(workload % w.Namespaces) }

func namespaceName(i int) string { return fmt.Sprintf("xdsload-%02d", i) }

func workloadName(workload int) string { return fmt.Sprintf("app-%04d", workload) }

func serviceName(workload int) string { return fmt.Sprintf("svc-%04d", workload) }

// task makes the i-th object of a kind.
type task = func(ctx context.Context, i int) error

// Create makes everything and returns when the endpoints of all services are there. The nodes live as long as ctx.
func (w *World) Create(ctx context.Context) error {
	type step struct {
		what string
		n    int
		make task
	}
	steps := []step{
		{"namespaces", w.Namespaces, w.createNamespace},
		{"service accounts", w.Services, w.createAccount},
		{"pods", w.pods(), w.createPod},
		{"services", w.Services, w.createService},
		{"endpoint slices", w.Targets, w.createSlice},
		{"policies of namespaces", w.Namespaces, w.createNamespacePolicy},
		{"policies of workloads", w.guarded(), w.createPolicy},
	}
	if w.Requests {
		steps = append(steps, step{"the authorizer", 1, w.createAuthorizer}, step{"tokens of workloads", w.verified(), w.createTokens}, step{"questions to the authorizer", w.verified(), w.createQuestion})
	}
	for _, s := range steps {
		if err := each(ctx, s.n, s.make); err != nil {
			return fmt.Errorf("making %s: %w", s.what, err)
		}
	}
	return w.awaitEndpoints(ctx)
}

// each runs n tasks, some at a time.
func each(ctx context.Context, n int, do task) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
			defer cancel()
			return do(ctx, i)
		})
	}
	return g.Wait()
}
