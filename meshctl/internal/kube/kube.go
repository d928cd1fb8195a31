// Package kube is meshctl's connection to a cluster: typed and dynamic clients and server-side apply.
package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

const callTimeout = 15 * time.Second

// Options choose the cluster; empty fields mean what they mean for kubectl.
type Options struct {
	Kubeconfig string
	Context    string
}

// Client speaks to one cluster.
type Client struct {
	kubernetes.Interface
	Dynamic dynamic.Interface
	Config  *rest.Config
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

// Connect reads the kubeconfig and makes sure that the cluster answers.
func Connect(ctx context.Context, o Options) (*Client, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.Kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: o.Context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("no usable kubeconfig (set KUBECONFIG or --kubeconfig): %w", err)
	}
	config.QPS, config.Burst = 100, 200
	config.UserAgent = "meshctl"
	config.WarningHandler = rest.NoWarnings{}
	c := &Client{Config: config}
	if c.Interface, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	if c.Dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(c.Discovery()))
	probe := rest.CopyConfig(config)
	probe.Timeout = callTimeout
	quick, err := kubernetes.NewForConfig(probe)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	if _, err := quick.Discovery().ServerVersion(); err != nil {
		if FailureOf(err) == Forbidden {
			return nil, fmt.Errorf("the cluster at %s does not let you in (is your login still good?): %w", config.Host, err)
		}
		return nil, fmt.Errorf("the cluster at %s does not answer (is it running, and is KUBECONFIG right?): %w", config.Host, err)
	}
	return c, ctx.Err()
}

func (c *Client) resource(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := o.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset() // a CRD applied a moment ago
		mapping, err = c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	}
	if err != nil {
		return nil, fmt.Errorf("the cluster does not know %s: %w", gvk, err)
	}
	r := c.Dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return r.Namespace(o.GetNamespace()), nil
	}
	return r, nil
}

// Describe names an object in messages.
func Describe(o *unstructured.Unstructured) string {
	if o.GetNamespace() == "" {
		return o.GetKind() + " " + o.GetName()
	}
	return o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
}

// Apply applies an object server-side, as its owner.
func (c *Client) Apply(ctx context.Context, o *unstructured.Unstructured) error {
	return c.apply(ctx, o, metav1.ApplyOptions{FieldManager: mesh.FieldManager, Force: true})
}

func (c *Client) apply(ctx context.Context, o *unstructured.Unstructured, options metav1.ApplyOptions) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := c.resource(o)
	if err != nil {
		return err
	}
	if _, err := r.Apply(ctx, o.GetName(), o, options); err != nil {
		return fmt.Errorf("applying %s: %w", Describe(o), err)
	}
	return nil
}

// Get reads the object that o names into it.
func (c *Client) Get(ctx context.Context, o *unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := c.resource(o)
	if err != nil {
		return err
	}
	got, err := r.Get(ctx, o.GetName(), metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading %s: %w", Describe(o), err)
	}
	o.Object = got.Object
	return nil
}

// Outcome returns what an object would be if it were applied.
func (c *Client) Outcome(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := c.resource(o)
	if err != nil {
		return nil, err
	}
	got, err := r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: mesh.FieldManager, Force: true, DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return nil, fmt.Errorf("trying to apply %s: %w", Describe(o), err)
	}
	return got, nil
}

// Delete deletes an object; that it is not there is no error.
func (c *Client) Delete(ctx context.Context, o *unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := c.resource(o)
	if err != nil {
		return nil // a kind that the cluster does not know has no objects
	}
	background := metav1.DeletePropagationBackground
	err = r.Delete(ctx, o.GetName(), metav1.DeleteOptions{PropagationPolicy: &background})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting %s: %w", Describe(o), err)
	}
	return nil
}

// Poll calls check, with a growing interval, until it is done, fails or ctx ends; then the error says what was missing.
func Poll(ctx context.Context, check func(context.Context) (missing string, err error)) error {
	var last string
	err := wait.PollUntilContextCancel(ctx, 150*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		missing, err := check(ctx)
		if err == nil {
			last = missing
		}
		return missing == "" && err == nil, err
	})
	if err != nil && last != "" && ending(ctx) {
		return errors.New(last)
	}
	return err
}

// ending says whether there is no time left for a call: the client refuses one that would not begin before ctx ends, which is not what is wrong.
func ending(ctx context.Context) bool {
	end, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && time.Until(end) < time.Second
}
