// Package world makes, in a real API server, the cluster that the load generator needs: nodes that no kubelet runs, pods
// that claim to run there, services, and policies. Everything bears one label, by which it is removed again.
package world

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
)

const (
	label    = "bulwark.dev/load-test"
	value    = "xdsload"
	selector = label + "=" + value
)

// Sizes of a world.
type Sizes struct {
	Proxies    int `json:"proxies"`
	Services   int `json:"services"`
	Endpoints  int `json:"endpoints"` // of each service
	Namespaces int `json:"namespaces"`
	Nodes      int `json:"nodes"`
	Targets    int `json:"targets"` // services that have one endpoint more, which changes
}

// Validate refuses sizes that do not fit together.
func (s Sizes) Validate() error {
	switch {
	case s.Proxies <= 0 || s.Services <= 0 || s.Endpoints <= 0 || s.Namespaces <= 0 || s.Nodes <= 0 || s.Targets <= 0:
		return errors.New("every size must be positive")
	case s.Proxies%s.Endpoints != 0:
		return fmt.Errorf("%d proxies cannot stand behind services of %d endpoints: not a multiple", s.Proxies, s.Endpoints)
	case s.groups()%s.Namespaces != 0:
		return fmt.Errorf("%d workloads cannot be spread over %d namespaces evenly", s.groups(), s.Namespaces)
	case s.Services%s.groups() != 0:
		return fmt.Errorf("%d services cannot be spread over %d workloads evenly", s.Services, s.groups())
	case s.Targets > s.Services:
		return fmt.Errorf("%d services cannot change: there are %d", s.Targets, s.Services)
	case s.Proxies > 250*250 || s.Namespaces > 100:
		return errors.New("too large: at most 62500 proxies in 100 namespaces")
	}
	return nil
}

// groups is the number of workloads: pods with one service account and one set of labels, as a Deployment has them. Each
// service selects one, so each workload has as many pods as a service has endpoints.
func (s Sizes) groups() int { return s.Proxies / s.Endpoints }

// World is the client's side of it.
type World struct {
	Sizes
	kube    kubernetes.Interface
	dynamic dynamic.Interface
	uids    []string // of the pods, once they are made
}

// New returns a world that is not made yet.
func New(config *rest.Config, s Sizes) (*World, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = 500, 500
	config.WarningHandler = rest.NoWarnings{} // the policies hold on TCP ports too, on purpose
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	return &World{s, kube, dyn, make([]string, s.Proxies)}, nil
}

// Members are the pods, each with a proxy to simulate.
func (w *World) Members() []fleet.Member {
	var out []fleet.Member
	for i := range w.Proxies {
		out = append(out, w.member(i))
	}
	return out
}

func (w *World) member(i int) fleet.Member {
	g := i % w.groups()
	return fleet.Member{
		Namespace: w.namespaceOf(g), Pod: fmt.Sprintf("%s-%d", groupName(g), i/w.groups()), UID: w.uids[i], Group: groupName(g),
		ServiceAccount: groupName(g), Node: nodeName(i % w.Nodes), IP: fmt.Sprintf("10.250.%d.%d", i/250, 1+i%250),
	}
}

func (w *World) namespaceOf(group int) string { return fmt.Sprintf("xdsload-%02d", group%w.Namespaces) }

func groupName(group int) string { return fmt.Sprintf("app-%04d", group) }

func serviceName(service int) string { return fmt.Sprintf("svc-%04d", service) }

// Create makes everything and returns when the endpoints of all services are there.
func (w *World) Create(ctx context.Context) error {
	steps := []struct {
		what string
		n    int
		make func(context.Context, int) error
	}{
		{"nodes", w.Nodes, w.createNode},
		{"namespaces", w.Namespaces, w.createNamespace},
		{"service accounts", w.groups(), w.createAccount},
		{"pods", w.Proxies, w.createPod},
		{"services", w.Services, w.createService},
		{"endpoint slices", w.Targets, w.createSlice},
		{"policies", w.groups(), w.createPolicy},
	}
	for _, s := range steps {
		if err := each(ctx, s.n, s.make); err != nil {
			return fmt.Errorf("making %s: %w", s.what, err)
		}
	}
	return w.awaitEndpoints(ctx)
}

// each runs n tasks, some at a time.
func each(ctx context.Context, n int, task func(context.Context, int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			return task(ctx, i)
		})
	}
	return g.Wait()
}
