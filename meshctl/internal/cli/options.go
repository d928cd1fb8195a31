package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
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
					return options, fmt.Errorf("reading the mesh's settings off Deployment %s/%s: %w", mesh.Namespace, mesh.PilotAccount, err)
				}
			case "--trusted-proxies":
				if options.TrustedProxies, err = strconv.Atoi(value); err != nil {
					return options, fmt.Errorf("reading the mesh's settings off Deployment %s/%s: %s: %w", mesh.Namespace, mesh.PilotAccount, name, err)
				}
			}
		}
	}
	return options, nil
}
