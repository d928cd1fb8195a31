package cli

import (
	"errors"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	operatorv1 "github.com/bulwark-mesh/bulwark/pkg/api/operator/v1"
)

func TestPoliciesAreNamedAsForKubectl(t *testing.T) {
	for _, c := range []struct {
		args, want string // want: or a part of the error
	}{
		{"authorizationpolicy/x", "authorizationpolicy n/x"},
		{"authorizationpolicies/x", "authorizationpolicy n/x"},
		{"AuthorizationPolicy/x", "authorizationpolicy n/x"},
		{"ap/x", "authorizationpolicy n/x"},
		{"pa/x ra/y", "peerauthentication n/x, requestauthentication n/y"},
		{"ap x y", "authorizationpolicy n/x, authorizationpolicy n/y"},
		{"authorizationpolicy.security.istio.io/x", "authorizationpolicy n/x"},
		{"authorizationpolicies.v1.security.istio.io/x", "authorizationpolicy n/x"},
		{"authorizationpolicies.v1beta1.security.istio.io/x", "authorizationpolicy n/x"},
		{"peerauthentication.security.istio.io x", "peerauthentication n/x"},
		{"authorizationpolicy.example.com/x", "no kind of policies"},
		{"deployment/x", "no kind of policies"},
		{"", "TYPE/NAME"},
		{"ap", "which ap?"},
		{"ap/", "which policy"},
		{"/x", "which policy"},
		{"ap/n/x", "-n is for the namespace"},
	} {
		names, err := policyNames("n", strings.Fields(c.args))
		var got []string
		for _, n := range names {
			got = append(got, n.String())
		}
		if err == nil && strings.Join(got, ", ") != c.want || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, %v", c.args, got, err)
		}
	}
}

func policyWith(generation int64, conditions ...any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": map[string]any{"name": "x", "namespace": "n", "generation": generation},
		"status": map[string]any{"conditions": conditions}}}
}

func conditionWith(typ, status, reason string, generation int64) any {
	return map[string]any{"type": typ, "status": status, "reason": reason, "observedGeneration": generation, "message": "so it is"}
}

func TestWhatAPolicysStatusTells(t *testing.T) {
	const enforced, enforceable = operatorv1.EnforcedCondition, operatorv1.EnforceableCondition
	for name, c := range map[string]struct {
		policy   *unstructured.Unstructured
		enforced bool
		says     string // or a part of the error
	}{
		"enforced":                      {policyWith(2, conditionWith(enforced, "True", "Enforced", 2)), true, "so it is"},
		"enforced at an older one":      {policyWith(2, conditionWith(enforced, "True", "Enforced", 1)), false, "generation 2"},
		"lagging":                       {policyWith(2, conditionWith(enforced, "False", "ProxiesLag", 2)), false, "so it is"},
		"selecting nothing":             {policyWith(2, conditionWith(enforced, "Unknown", "NoProxies", 2)), false, "so it is"},
		"on trial":                      {policyWith(2, conditionWith(enforced, "False", "NoEffect", 2)), false, "will not be enforced"},
		"not enforceable":               {policyWith(2, conditionWith(enforced, "True", "Enforced", 2), conditionWith(enforceable, "False", "FailsClosed", 2)), false, "change it and apply it again"},
		"mended a moment ago":           {policyWith(3, conditionWith(enforceable, "False", "FailsClosed", 2)), false, "generation 3"},
		"nothing":                       {policyWith(1), false, "generation 1"},
		"what is no list of conditions": {&unstructured.Unstructured{Object: map[string]any{"status": map[string]any{"conditions": "x"}}}, false, "generation 0"},
		"what is no condition":          {policyWith(1, "x", nil, map[string]any{"type": int64(1)}), false, "generation 1"},
	} {
		got, says, err := judge(policyName{policyKinds[0], "n", "x"}, c.policy)
		if err != nil {
			says = err.Error()
		}
		if got != c.enforced || !strings.Contains(says, c.says) {
			t.Errorf("%s: %v, %q, %v", name, got, says, err)
		}
	}
}

func TestWaitingEndsWithWhatHappens(t *testing.T) {
	policies := policyKinds[0].resource()
	p := policyName{policyKinds[0], "n", "x"}
	good := policyWith(1, conditionWith(operatorv1.EnforcedCondition, "True", "Enforced", 1))
	for name, c := range map[string]struct {
		there *unstructured.Unstructured
		then  func(*fake.FakeDynamicClient) error // once it is watched
		want  string                              // of the error; empty: none
	}{
		"it is so already": {good, nil, ""},
		"it comes to be so": {policyWith(1), func(f *fake.FakeDynamicClient) error {
			return f.Tracker().Update(policies, good, "n")
		}, ""},
		"it goes": {policyWith(1), func(f *fake.FakeDynamicClient) error {
			return f.Tracker().Delete(policies, "n", "x")
		}, "was deleted"},
		"nothing happens": {policyWith(1), func(*fake.FakeDynamicClient) error { return nil }, errLate.Error()},
		"it is not there": {nil, nil, "is not there; kubectl get authorizationpolicies -A"},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{policies: "AuthorizationPolicyList"})
			if c.there != nil {
				if err := client.Tracker().Create(policies, c.there, "n"); err != nil {
					t.Fatal(err)
				}
			}
			watched := 0
			client.PrependWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
				w, err := client.Tracker().Watch(policies, "n")
				if err == nil && watched == 0 {
					err = c.then(client)
				}
				watched++
				return true, w, err
			})
			within := 20 * time.Second
			if c.want == errLate.Error() {
				within = 50 * time.Millisecond
			}
			_, err := awaitEnforced(t.Context(), client.Resource(policies).Namespace("n"), p, time.Now().Add(within))
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if c.want == errLate.Error() && !errors.Is(err, errLate) {
				t.Errorf("it is not told from a failure: %v", err)
			}
		})
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	p := policyName{policyKinds[0], "n", "x"}
	noKind := &apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonNotFound, Code: 404, Message: "the server could not find the requested resource"}}
	if err := missing(p, noKind); !strings.Contains(err.Error(), "meshctl install") {
		t.Errorf("of a cluster without the kind it says %v", err)
	}
}
