package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/objects"
	"github.com/bulwark-mesh/bulwark/pilot/explain"
	"github.com/bulwark-mesh/bulwark/pilot/offline"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

func (a *app) authz() *cobra.Command {
	cmd := group("authz", "Ask why requests are allowed or denied, who may do what, and what other policies would change")
	cmd.Long = "Answers come from the policies and workloads of the cluster, or of files (-f), as Pilot reads them. See docs/authz.md.\n" +
		"For scripts: 0 says yes, allowed or the same; 1 says no, denied or different; 2 is an error, or something that could not be told."
	cmd.AddCommand(a.authzExplain(), a.authzWhoCan(), a.authzWhatCan(), a.authzDiff(), a.authzReplay(), a.authzSuggest(), a.authzCheck())
	for _, c := range cmd.Commands() {
		scripted(c)
	}
	return cmd
}

// world says which objects a command of authz asks.
type world struct {
	files   []string
	only    bool // the files' policies instead of the cluster's
	offline bool
	mesh    meshFlags
}

func (w *world) flags(cmd *cobra.Command, files string) {
	f := cmd.Flags()
	f.StringSliceVarP(&w.files, "filename", "f", nil, files)
	f.BoolVar(&w.only, "only", false, "the policies of the files alone hold, not beside those of the cluster that have other names, but for the installation's own")
	f.BoolVar(&w.offline, "offline", false, "ask no cluster: the files have workloads and Services, too")
	w.mesh.flags(cmd)
}

// base are the objects of the cluster, none if it is not asked, and what the mesh is told beside them. The client is nil then.
func (a *app) base(ctx context.Context, w world, in io.Reader) (*kube.Client, []*unstructured.Unstructured, authz.Options, error) {
	options := authz.Options{TrustDomain: mesh.DefaultTrustDomain, RootNamespace: mesh.Namespace}
	if err := w.mesh.check(w.offline, w.files); err != nil {
		return nil, nil, options, err
	}
	var client *kube.Client
	var found []*unstructured.Unstructured
	var err error
	if w.offline {
		if options, found, err = w.mesh.installed(in, options); err != nil {
			return nil, nil, options, err
		}
	} else {
		if client, err = a.connect(ctx); err != nil {
			return nil, nil, options, fmt.Errorf("%w (or ask files alone, by --offline -f)", err)
		}
		if options, err = installedOptions(ctx, client, options); err != nil {
			return nil, nil, options, err
		}
		if found, err = a.found(ctx, client); err != nil {
			return nil, nil, options, err
		}
	}
	return client, found, w.mesh.over(options), nil
}

// found is what a cluster has of what decides, and of what has pods. Who may not list some of the latter is told what is missing.
func (a *app) found(ctx context.Context, client *kube.Client) ([]*unstructured.Unstructured, error) {
	out, err := objects.InCluster(ctx, client, offline.Resources())
	if err != nil {
		return nil, err
	}
	makers := offline.Makers()
	found, errs := objects.EachInCluster(ctx, client, makers)
	for i, r := range makers {
		switch err := errs[i]; {
		case err == nil:
			out = append(out, found[i]...)
		case kube.FailureOf(err) == kube.Forbidden:
			a.notes.Line("%ss may not be listed: their pods go by names of their own, and what has no pod yet is not known", r.Kind)
		default:
			return nil, err
		}
	}
	return out, nil
}

// mesh is what holds if the files are applied.
func (a *app) mesh(ctx context.Context, w world, in io.Reader, namespace string) (*kube.Client, *explain.Mesh, error) {
	if w.offline && len(w.files) == 0 {
		return nil, nil, errors.New("--offline needs files: name them with -f")
	}
	client, base, options, err := a.base(ctx, w, in)
	if err != nil {
		return nil, nil, err
	}
	files, err := objects.InFiles(w.files, in, namespace)
	if err != nil {
		return nil, nil, err
	}
	if untold := w.mesh.untold(files); client == nil && untold != "" {
		a.notes.Line("%s", untold)
	}
	m, err := explain.New(laidOver(base, files, w.only), options, time.Now())
	return client, m, err
}

// laidOver are the objects of files and those of a cluster that have other names; with only, no policies of the cluster but what the installation itself has made.
func laidOver(base, files []*unstructured.Unstructured, only bool) []*unstructured.Unstructured {
	if only {
		base = explain.Overlay(explain.WithoutPolicies(base), slices.DeleteFunc(slices.Clone(base), func(o *unstructured.Unstructured) bool {
			return o.GetLabels()[mesh.PartOfLabel] != mesh.PartOfValue
		}))
	}
	return explain.Overlay(base, files)
}

// completeWorkload completes names of workloads, of the files and the cluster that the command line names already.
func (a *app) completeWorkload(w *world, namespace *string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		_, m, err := a.mesh(cmd.Context(), *w, strings.NewReader(""), *namespace)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return m.Names(*namespace), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeAccount completes service accounts as which pods run.
func (a *app) completeAccount(w *world) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		_, m, err := a.mesh(cmd.Context(), *w, strings.NewReader(""), "default")
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return m.Accounts(), cobra.ShellCompDirectiveNoFileComp
	}
}

// complete sets the completion of a flag that the command has.
func complete(cmd *cobra.Command, flag string, by cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, by); err != nil {
		panic("completion of a flag that is not there: " + err.Error())
	}
}

// widest is how many characters of a value a table has; -o json has all.
const widest = 120

// brief are cells as wide as people read: values of policies and paths of requests may be much longer.
func brief(cells ...string) []string {
	for i, c := range cells {
		if utf8.RuneCountInString(c) > widest {
			cells[i] = string([]rune(c)[:widest]) + "…"
		}
	}
	return cells
}
