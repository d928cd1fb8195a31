package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/operator"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	operatorv1 "github.com/bulwark-mesh/bulwark/pkg/api/operator/v1"
)

// policyKind is a kind of policies, with the names that kubectl takes for it.
type policyKind struct{ kind, singular, plural, short string }

var policyKinds = []policyKind{
	{"AuthorizationPolicy", "authorizationpolicy", "authorizationpolicies", "ap"},
	{"PeerAuthentication", "peerauthentication", "peerauthentications", "pa"},
	{"RequestAuthentication", "requestauthentication", "requestauthentications", "ra"},
}

const policyGroup = "security.istio.io"

func (k policyKind) resource() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: policyGroup, Version: "v1", Resource: k.plural}
}

// policyName is a policy as it is named on a command line.
type policyName struct {
	policyKind
	namespace, name string
}

func (p policyName) String() string { return p.singular + " " + p.namespace + "/" + p.name }

// policyNames reads TYPE/NAME … or TYPE NAME …, where a type has one of kubectl's names, as in authorizationpolicies.v1.security.istio.io.
func policyNames(namespace string, args []string) ([]policyName, error) {
	const use = "name a policy as kubectl does, TYPE/NAME, such as authorizationpolicy/deny-all"
	if len(args) == 0 {
		return nil, errors.New(use)
	}
	texts := args
	if !strings.Contains(args[0], "/") {
		if len(args) == 1 {
			return nil, fmt.Errorf("which %s? %s", args[0], use)
		}
		texts = nil
		for _, name := range args[1:] {
			texts = append(texts, args[0]+"/"+name)
		}
	}
	var out []policyName
	for _, text := range texts {
		typ, name, _ := strings.Cut(text, "/")
		if typ == "" || name == "" || strings.Contains(name, "/") {
			return nil, fmt.Errorf("which policy is %q? %s; -n is for the namespace", text, use)
		}
		kind, err := policyKindOf(typ)
		if err != nil {
			return nil, err
		}
		out = append(out, policyName{kind, namespace, name})
	}
	return out, nil
}

func policyKindOf(typ string) (policyKind, error) {
	name, group, grouped := strings.Cut(strings.ToLower(typ), ".")
	if i := strings.IndexByte(group, '.'); strings.HasPrefix(group, "v1") && i >= 0 {
		group = group[i+1:] // a version: all of them have the same objects
	}
	for _, k := range policyKinds {
		if (!grouped || group == policyGroup) && slices.Contains([]string{k.singular, k.plural, k.short}, name) {
			return k, nil
		}
	}
	return policyKind{}, fmt.Errorf("there is no kind of policies %q: use authorizationpolicy, peerauthentication or requestauthentication", typ)
}

func (a *app) wait() *cobra.Command {
	var output, namespace, what string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "wait TYPE/NAME ...", Short: "Wait until every proxy that a policy selects enforces it",
		Long: "Returns when all proxies that the policies select have acknowledged them as they are now. Otherwise it fails at the end of the time,\n" +
			"and names the proxies that lag. It fails at once where a policy cannot be enforced, or is on trial. With --timeout 0 it looks once.",
		Example: "  meshctl wait authorizationpolicy/deny-all -n finance --for enforced --timeout 30s\n  meshctl wait pa/default -n bulwark-system -o json",
		Args:    func(_ *cobra.Command, args []string) error { _, err := policyNames(namespace, args); return err },
		RunE: func(cmd *cobra.Command, args []string) error {
			policies, err := policyNames(namespace, args)
			if err != nil {
				return err
			}
			if name := strings.TrimPrefix(strings.ToLower(what), "condition="); name != "enforced" && name != strings.ToLower(operatorv1.EnforcedCondition) {
				return fmt.Errorf("--for %q: use enforced", what)
			}
			if timeout < 0 {
				return errors.New("--timeout: how long to wait, such as 30s; 0 looks once")
			}
			return a.waitEnforced(cmd.Context(), policies, timeout, output)
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the policies")
	cmd.Flags().StringVar(&what, "for", "enforced", "what to wait for: enforced")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait for all of them")
	outputFlag(cmd, &output)
	return cmd
}

func (a *app) waitEnforced(ctx context.Context, policies []policyName, timeout time.Duration, output string) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	if _, err := operator.Pods(ctx, client, "pilot"); err != nil { // nobody would say that it is enforced
		return err
	}
	until := time.Now().Add(timeout)
	outcomes, failures := []operatorv1.Enforcement{}, []error(nil)
	for _, p := range policies {
		last, err := awaitEnforced(ctx, client.Dynamic.Resource(p.resource()).Namespace(p.namespace), p, until)
		outcome := operatorv1.Enforcement{Kind: p.kind, Namespace: p.namespace, Name: p.name, Lagging: []operatorv1.Laggard{}}
		late := errors.Is(err, errLate)
		switch {
		case err != nil && !late:
			failures = append(failures, err)
			continue
		case late || output != "table":
			query := url.Values{"kind": {p.kind}, "policy": {p.namespace + "/" + p.name}}
			if asked := askPilot(ctx, client, "/v1/enforced", query, &outcome); asked != nil {
				err = errors.Join(err, fmt.Errorf("which proxies lag is not known: %w", asked))
			}
		}
		if late {
			failures = append(failures, fmt.Errorf("%s: %w after %s: %s", p, err, timeout, last))
		} else if err != nil {
			failures = append(failures, err)
		}
		outcomes = append(outcomes, outcome)
		if output == "table" {
			showEnforced(a.out, p, last, outcome, late)
		}
	}
	if output != "table" {
		if err := a.out.Value(output, outcomes, nil); err != nil {
			return err
		}
	}
	return errors.Join(failures...)
}

func showEnforced(out *printer.Printer, p policyName, last string, e operatorv1.Enforcement, late bool) {
	if !late {
		out.Line("%s is %s", p, last)
		return
	}
	if len(e.Lagging) == 0 {
		return
	}
	t := out.Table("PROXY", "LAGS BECAUSE")
	defer t.Flush()
	for _, l := range e.Lagging {
		t.Row(l.Proxy, l.Reason)
	}
}

// errLate is that the time is over.
var errLate = errors.New("not enforced")

const watchAgain = time.Second // after a watch has ended, or could not begin

// awaitEnforced watches a policy until all proxies that it selects have acknowledged it. It returns the last word about it.
func awaitEnforced(ctx context.Context, policies dynamic.ResourceInterface, p policyName, until time.Time) (last string, err error) {
	last = "nothing is known of it yet"
	for {
		object, err := read(ctx, policies, p.name)
		switch {
		case err == nil:
		case kube.FailureOf(err) == kube.Unreachable && time.Now().Before(until):
			if !pause(ctx, until) {
				return last, late(ctx)
			}
			continue
		default:
			return last, missing(p, err)
		}
		var enforced bool
		if enforced, last, err = judge(p, object); enforced || err != nil {
			return last, err
		}
		if !time.Now().Before(until) {
			return last, errLate
		}
		if enforced, last, err = follow(ctx, policies, p, object, until, last); enforced || err != nil {
			return last, err
		}
		if !pause(ctx, until) {
			return last, late(ctx)
		}
	}
}

const readWithin = 15 * time.Second

func read(ctx context.Context, policies dynamic.ResourceInterface, name string) (*unstructured.Unstructured, error) {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	return policies.Get(ctx, name, metav1.GetOptions{})
}

// follow watches a policy from a version of it on, until it is as wanted, gone, or the watch ends.
func follow(ctx context.Context, policies dynamic.ResourceInterface, p policyName, from *unstructured.Unstructured, until time.Time, last string) (bool, string, error) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	w, err := policies.Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, p.name).String(), ResourceVersion: from.GetResourceVersion()})
	if err != nil {
		if kind := kube.FailureOf(err); kind == kube.Forbidden {
			return false, last, fmt.Errorf("watching %s (needs the right `watch` on %s): %w", p, p.plural, err)
		}
		return false, last, nil // begun again
	}
	defer w.Stop()
	for {
		var e watch.Event
		select {
		case e = <-w.ResultChan(): // the zero event if the watch has ended
		case <-ctx.Done():
			return false, last, nil
		}
		object, ok := e.Object.(*unstructured.Unstructured)
		switch {
		case !ok:
			return false, last, nil
		case e.Type == watch.Deleted:
			return false, last, fmt.Errorf("%s was deleted while it was waited for", p)
		}
		var enforced bool
		if enforced, last, err = judge(p, object); enforced || err != nil {
			return enforced, last, err
		}
	}
}

// pause waits a little, and says whether there is time left.
func pause(ctx context.Context, until time.Time) bool {
	timer := time.NewTimer(min(watchAgain, max(0, time.Until(until))))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return ctx.Err() == nil && time.Now().Before(until)
}

// late is why there is no time left.
func late(ctx context.Context) error { return cmp.Or(ctx.Err(), errLate) }

func missing(p policyName, err error) error {
	switch {
	case meta.IsNoMatchError(err), apierrors.IsNotFound(err) && !strings.Contains(err.Error(), p.name):
		return fmt.Errorf("the cluster does not know %s; is Bulwark installed (meshctl install)?: %w", p.plural, err)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s is not there; kubectl get %s -A lists those that are, and -n chooses the namespace: %w", p, p.plural, err)
	}
	return fmt.Errorf("reading %s: %w", p, err)
}

// judge says whether a policy's status tells that it is enforced, and what it tells. The error is that it never will be.
func judge(p policyName, u *unstructured.Unstructured) (enforced bool, says string, err error) {
	if c := conditionOf(u, operatorv1.EnforceableCondition); c != nil && c["status"] == "False" {
		return false, "", fmt.Errorf("%s cannot be enforced as it is written; change it and apply it again: %v", p, c["message"])
	}
	c := conditionOf(u, operatorv1.EnforcedCondition)
	if c == nil {
		return false, fmt.Sprintf("Pilot has not spoken of its generation %d yet", u.GetGeneration()), nil
	}
	says = fmt.Sprint(c["message"])
	if c["reason"] == "NoEffect" {
		return false, "", fmt.Errorf("%s will not be enforced: %s", p, says)
	}
	return c["status"] == "True", says, nil
}

// conditionOf returns a condition that is about the object as it is now, or nil.
func conditionOf(u *unstructured.Unstructured, typ string) map[string]any {
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions") // what is no list has none
	for _, c := range conditions {
		m, _ := c.(map[string]any)
		generation, _, _ := unstructured.NestedInt64(m, "observedGeneration")
		if m != nil && m["type"] == typ && generation == u.GetGeneration() {
			return m
		}
	}
	return nil
}
