// Package stage is a namespace of a real cluster for one benchmark: in the mesh, strict, made anew each time and removed.
package stage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/tools/bench/traffic"
)

// The cast: a client may ask a server for what its policy says, and nothing else.
const (
	Namespace = "bulwark-bench"
	Server    = "server"
	Client    = "client"
	Policy    = "readers"
	Host      = Server + "." + Namespace
)

const (
	callWithin  = 30 * time.Second
	goneWithin  = 2 * time.Minute
	crowdWithin = 5 * time.Minute
)

var (
	peerAuthentications   = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}
	authorizationPolicies = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}
	policies              = map[string]schema.GroupVersionResource{
		"PeerAuthentication": peerAuthentications, "AuthorizationPolicy": authorizationPolicies,
		"RequestAuthentication": {Group: "security.istio.io", Version: "v1", Resource: "requestauthentications"},
	}
)

// Stage is the namespace.
type Stage struct {
	Config    *rest.Config
	Kube      kubernetes.Interface
	ServiceIP string // of ports 80 (HTTP), 81 (gRPC) and 82 (TCP)
	dynamic   dynamic.Interface
}

// Rule is one of an AuthorizationPolicy.
type Rule map[string]any

// Reads is a rule by which an account, of which the client's is the only one that there is, may get a path.
func Reads(account, path string) Rule {
	return From(account, map[string]any{"methods": []any{"GET"}, "paths": []any{path}})
}

// From is a rule by which an account may do an operation.
func From(account string, operation map[string]any) Rule {
	principal := mesh.DefaultTrustDomain + "/ns/" + Namespace + "/sa/" + account
	return Rule{
		"from": []any{map[string]any{"source": map[string]any{"principals": []any{principal}}}},
		"to":   []any{map[string]any{"operation": operation}},
	}
}

// New makes the namespace with accounts, a service, strict mutual TLS, and a policy by which the server's clients may do what the rules say.
func New(ctx context.Context, kubeconfig string, rules ...Rule) (*Stage, error) {
	s := &Stage{}
	var err error
	if s.Config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return nil, fmt.Errorf("configuration of the Kubernetes client: %w", err)
	}
	s.Config.WarningHandler, s.Config.QPS = rest.NoWarnings{}, -1 // a limit would be measured, too
	if s.Kube, err = kubernetes.NewForConfig(s.Config); err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	if s.dynamic, err = dynamic.NewForConfig(s.Config); err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	if err := s.Remove(ctx); err != nil {
		return nil, err
	}
	if err := s.make(ctx, rules); err != nil {
		return nil, errors.Join(fmt.Errorf("making namespace %s: %w", Namespace, err), s.Remove(ctx))
	}
	return s, nil
}

func (s *Stage) make(ctx context.Context, rules []Rule) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	_, err := s.Kube.CoreV1().Namespaces().Create(ctx, &core.Namespace{ObjectMeta: meta.ObjectMeta{Name: Namespace, Labels: map[string]string{
		istiocompat.InjectionLabel: "enabled", mesh.SecretsLabel: "disabled"}}}, meta.CreateOptions{})
	if err != nil {
		return err
	}
	for _, name := range []string{Server, Client} {
		_, err := s.Kube.CoreV1().ServiceAccounts(Namespace).Create(ctx, &core.ServiceAccount{ObjectMeta: meta.ObjectMeta{Name: name}}, meta.CreateOptions{})
		if err != nil {
			return err
		}
	}
	var ports []core.ServicePort
	for _, p := range traffic.Ports {
		ports = append(ports, core.ServicePort{Name: p.Name, Port: int32(p.Service), TargetPort: intstr.FromInt32(int32(p.Number))})
	}
	service, err := s.Kube.CoreV1().Services(Namespace).Create(ctx, &core.Service{
		ObjectMeta: meta.ObjectMeta{Name: Server},
		Spec:       core.ServiceSpec{Selector: map[string]string{"app": Server}, Ports: ports},
	}, meta.CreateOptions{})
	if err != nil {
		return err
	}
	s.ServiceIP = service.Spec.ClusterIP
	if err := s.create(ctx, "PeerAuthentication", "default", map[string]any{"mtls": map[string]any{"mode": "STRICT"}}); err != nil {
		return err
	}
	return s.allow(ctx, Policy, rules)
}

func (s *Stage) allow(ctx context.Context, name string, rules []Rule) error {
	return s.create(ctx, "AuthorizationPolicy", name, forServer(map[string]any{"action": "ALLOW", "rules": list(rules)}))
}

// forServer has a policy select the server.
func forServer(spec map[string]any) map[string]any {
	spec["selector"] = map[string]any{"matchLabels": map[string]any{"app": Server}}
	return spec
}

// ForServer makes a policy of a kind for the server, and returns what removes it again.
func (s *Stage) ForServer(ctx context.Context, kind, name string, spec map[string]any) (remove func(context.Context) error, err error) {
	within, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	if err := s.create(within, kind, name, forServer(spec)); err != nil {
		return nil, fmt.Errorf("making %s %s: %w", kind, name, err)
	}
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, callWithin)
		defer cancel()
		if err := s.dynamic.Resource(policies[kind]).Namespace(Namespace).Delete(ctx, name, meta.DeleteOptions{}); err != nil {
			return fmt.Errorf("removing %s %s: %w", kind, name, err)
		}
		return nil
	}, nil
}

// Also makes another policy for the server.
func (s *Stage) Also(ctx context.Context, name string, rules ...Rule) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	if err := s.allow(ctx, name, rules); err != nil {
		return fmt.Errorf("making policy %s: %w", name, err)
	}
	return nil
}

// list is rules as an object of the API server has them.
func list(rules []Rule) []any {
	out := make([]any, len(rules))
	for i, r := range rules {
		out[i] = map[string]any(r)
	}
	return out
}

func (s *Stage) create(ctx context.Context, kind, name string, spec map[string]any) error {
	u := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	u.SetAPIVersion(policies[kind].GroupVersion().String())
	u.SetKind(kind)
	u.SetName(name)
	_, err := s.dynamic.Resource(policies[kind]).Namespace(Namespace).Create(ctx, u, meta.CreateOptions{})
	return err
}

// Allow changes the policy's rules.
func (s *Stage) Allow(ctx context.Context, rules ...Rule) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"rules": rules}})
	if err != nil {
		return err
	}
	_, err = s.dynamic.Resource(authorizationPolicies).Namespace(Namespace).Patch(ctx, Policy, types.MergePatchType, patch, meta.PatchOptions{})
	if err != nil {
		return fmt.Errorf("changing the policy: %w", err)
	}
	return nil
}

// Change gives a policy that ForServer made another list in a field of its spec.
func (s *Stage) Change(ctx context.Context, kind, name, field string, list ...any) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{field: list}})
	if err != nil {
		return err
	}
	if _, err = s.dynamic.Resource(policies[kind]).Namespace(Namespace).Patch(ctx, name, types.MergePatchType, patch, meta.PatchOptions{}); err != nil {
		return fmt.Errorf("changing %s %s: %w", kind, name, err)
	}
	return nil
}

// Crowd makes so many Services that everyone may call, behind which is nobody: each proxy of the mesh knows them.
func (s *Stage) Crowd(ctx context.Context, services int) error {
	ctx, cancel := context.WithTimeout(ctx, crowdWithin)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range services {
		g.Go(func() error {
			_, err := s.Kube.CoreV1().Services(Namespace).Create(ctx, &core.Service{
				// Another service proxy's, so that kube-proxy does not spend the machine on them.
				ObjectMeta: meta.ObjectMeta{Name: fmt.Sprintf("crowd-%04d", i), Labels: map[string]string{"service.kubernetes.io/service-proxy-name": Namespace}},
				Spec:       core.ServiceSpec{Ports: []core.ServicePort{{Name: "http", Port: 80}}},
			}, meta.CreateOptions{})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("making %d services: %w", services, err)
	}
	return nil
}

// Remove removes the namespace, if it is there, and returns when it is gone. It works after ctx has ended.
func (s *Stage) Remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goneWithin)
	defer cancel()
	now := int64(0)
	err := s.Kube.CoreV1().Pods(Namespace).DeleteCollection(ctx, meta.DeleteOptions{GracePeriodSeconds: &now}, meta.ListOptions{})
	if err != nil {
		return fmt.Errorf("removing the pods of %s: %w", Namespace, err)
	}
	if err := s.Kube.CoreV1().Namespaces().Delete(ctx, Namespace, meta.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("removing namespace %s: %w", Namespace, err)
	}
	err = wait.PollUntilContextCancel(ctx, 200*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		_, err := s.Kube.CoreV1().Namespaces().Get(ctx, Namespace, meta.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
	if err != nil {
		return fmt.Errorf("removing namespace %s: %w", Namespace, err)
	}
	return nil
}
