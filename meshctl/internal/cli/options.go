package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	apps "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/chart"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/proxyprotocol"
)

// installedOptions reads what Pilot was told off its Deployment. Where there is none, the mesh is not installed yet, and what it will find can be looked at: the options are those that
// were given.
func installedOptions(ctx context.Context, client *kube.Client, options authz.Options) (authz.Options, error) {
	d, err := client.AppsV1().Deployments(mesh.Namespace).Get(ctx, mesh.PilotAccount, metav1.GetOptions{})
	if kube.FailureOf(err) == kube.NotFound {
		return options, nil
	}
	if err != nil {
		return options, fmt.Errorf("reading the mesh's settings off Deployment %s/%s: %w", mesh.Namespace, mesh.PilotAccount, err)
	}
	options, err = pilotOptions(d, options)
	if err != nil {
		return options, fmt.Errorf("reading the mesh's settings off Deployment %s/%s: %w", mesh.Namespace, mesh.PilotAccount, err)
	}
	return options, nil
}

// pilotOptions are the options that Pilot's Deployment gives to it.
func pilotOptions(d *apps.Deployment, options authz.Options) (_ authz.Options, err error) {
	for _, c := range d.Spec.Template.Spec.Containers {
		for _, arg := range c.Args {
			switch name, value, _ := strings.Cut(arg, "="); name {
			case "--trustDomain":
				options.TrustDomain = value
			case "--trust-domain-aliases":
				options.TrustDomainAliases = strings.Split(value, ",")
			case "--rootNamespace":
				options.RootNamespace = value
			case "--extension-providers":
				if options.Authorizers, err = authorizer.Parse(value); err != nil {
					return options, err
				}
			case "--load-balancers":
				if options.LoadBalancers, err = proxyprotocol.Networks(strings.Split(value, ",")); err != nil {
					return options, fmt.Errorf("%s: %w", name, err)
				}
			case "--trusted-proxies":
				if options.TrustedProxies, err = strconv.Atoi(value); err != nil {
					return options, fmt.Errorf("%s: %w", name, err)
				}
			}
		}
	}
	return options, nil
}

// meshFlags say what the mesh is told beside objects: in place of what the installation of a cluster says, or, where no cluster is asked, by the values that an
// installation would have.
type meshFlags struct {
	trustDomain, root string
	aliases           []string
	proxies           int
	values, set       []string
	given             func(flag string) bool
}

func (m *meshFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&m.values, "values", nil, "with --offline: YAML file of the installation's settings, as `meshctl install --values` takes it, - for the input (may be repeated)")
	f.StringArrayVar(&m.set, "set", nil, "with --offline: one setting of the installation, key=value (may be repeated)")
	f.StringVar(&m.trustDomain, "trust-domain", "", "trust domain of the mesh (default: the installation's, or "+mesh.DefaultTrustDomain+")")
	f.StringSliceVar(&m.aliases, "trust-domain-aliases", nil, "its aliases (default: the installation's)")
	f.StringVar(&m.root, "root-namespace", "", "namespace whose policies hold mesh-wide (default: the installation's, or "+mesh.Namespace+")")
	f.IntVar(&m.proxies, "trusted-proxies", 0, "how many proxies before workloads are trusted to name a client's address (default: the installation's, or none)")
	m.given = f.Changed
}

// check returns why the flags cannot be followed. The files are those of which the command line has objects.
func (m *meshFlags) check(offline bool, files []string) error {
	switch {
	case len(m.values)+len(m.set) == 0:
		return nil
	case !offline:
		return errors.New("--values and --set say what an installation would be told, where no cluster is asked: give them with --offline, or leave them out, as the cluster's installation says it itself")
	case slices.Contains(m.values, "-") && slices.Contains(files, "-"):
		return errors.New("--values -: the input is read for objects already (-f -); name a file")
	}
	for _, both := range [][2]string{{"trust-domain", "trustDomain"}, {"trust-domain-aliases", "trustDomainAliases"}, {"trusted-proxies", "trustedProxies"}} {
		if m.given(both[0]) {
			return fmt.Errorf("--%s: --values and --set say it, too: write --set %s=VALUE, which goes before what files say", both[0], both[1])
		}
	}
	return nil
}

// untold is what a reader has to know who asks about files and does not say which settings an installation has; empty if it makes no difference.
func (m *meshFlags) untold(files []*unstructured.Unstructured) string {
	asks := slices.ContainsFunc(files, func(o *unstructured.Unstructured) bool {
		action, _, _ := unstructured.NestedString(o.Object, "spec", "action")
		return o.GetKind() == "AuthorizationPolicy" && action == "CUSTOM"
	})
	if !asks || len(m.values)+len(m.set) > 0 {
		return ""
	}
	return "External authorizers are settings of the installation, which no cluster is asked for: what policies of action CUSTOM match is taken for denied. --values FILE says which there are"
}

// installed are the options of an installation with the values that were given, and the mesh-wide policies that it would have: what Pilot would be told and find, as the chart has it.
func (m *meshFlags) installed(in io.Reader, options authz.Options) (authz.Options, []*unstructured.Unstructured, error) {
	if len(m.values)+len(m.set) == 0 {
		return options, nil, nil
	}
	values, err := chart.Values(nil, m.values, m.set, in)
	if err != nil {
		return options, nil, err
	}
	objects, err := chart.Render(values)
	if err != nil {
		return options, nil, fmt.Errorf("--values, --set: %w", err)
	}
	var policies []*unstructured.Unstructured
	for _, o := range objects {
		switch {
		case o.GetKind() == "PeerAuthentication":
			policies = append(policies, o)
		case o.GetKind() == "Deployment" && o.GetName() == mesh.PilotAccount:
			var d apps.Deployment
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &d); err != nil {
				return options, nil, fmt.Errorf("reading the chart's Deployment %s: %w", o.GetName(), err)
			}
			if options, err = pilotOptions(&d, options); err != nil {
				return options, nil, fmt.Errorf("--values, --set: %w", err)
			}
		}
	}
	return options, policies, nil
}

// over are the options with what the flags say in their place.
func (m *meshFlags) over(o authz.Options) authz.Options {
	o.TrustDomain = cmp.Or(m.trustDomain, o.TrustDomain)
	o.RootNamespace = cmp.Or(m.root, o.RootNamespace)
	o.TrustedProxies = cmp.Or(m.proxies, o.TrustedProxies)
	if len(m.aliases) > 0 {
		o.TrustDomainAliases = m.aliases
	}
	return o
}
