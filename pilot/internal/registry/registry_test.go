package registry

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

func TestChangesAreWhatChanged(t *testing.T) {
	reg, err := New()
	if err != nil {
		t.Fatal(err)
	}
	pod := func(ip string) Event {
		return Event{Pods, "a/p", &Pod{ID: "a/p", Namespace: "a", Name: "p", IPs: []string{ip}}}
	}
	apply := func(want int, events ...Event) {
		t.Helper()
		changes, err := reg.Apply(events)
		if err != nil || len(changes) != want {
			t.Fatalf("got %v, %v, want %d changes", changes, err, want)
		}
	}
	apply(1, pod("10.0.0.1"))
	before := reg.Snapshot()
	apply(0, pod("10.0.0.1"))
	apply(1, pod("10.0.0.2"))
	if before.PodAt("10.0.0.1") == nil || reg.Snapshot().PodAt("10.0.0.1") != nil {
		t.Error("a snapshot changed, or the registry did not")
	}
	apply(1, Event{Kind: Pods, ID: "a/p"})
	apply(0, Event{Kind: Pods, ID: "a/p"})
	if n := reg.Size(Pods); n != 0 {
		t.Errorf("%d pods", n)
	}
}

// someLabels are a few labels of which some resemble each other, or none.
func someLabels(random *rand.Rand) map[string]string {
	out := map[string]string{}
	for _, key := range []string{"app", "app.kubernetes.io/name", "tier", "a"} {
		if random.IntN(2) == 0 {
			out[key] = []string{"x", "y", "", "x\x00"}[random.IntN(4)]
		}
	}
	return out
}

// Pods are found by a selector whichever of its labels they are looked for by, also after their labels have changed.
func TestPodsSelectedAreThoseThatHaveTheLabels(t *testing.T) {
	reg, err := New()
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		ns, name := []string{"a", "b"}[random.IntN(2)], fmt.Sprint(random.IntN(20))
		event := Event{Pods, ns + "/" + name, &Pod{ID: ns + "/" + name, Namespace: ns, Name: name, Labels: someLabels(random)}}
		if random.IntN(5) == 0 {
			event.Object = nil
		}
		if _, err := reg.Apply([]Event{event}); err != nil {
			t.Fatal(err)
		}
		selector := someLabels(random)
		var want []*Pod
		for p := range reg.Snapshot().PodsIn("a") {
			if authz.Selects(selector, p.Labels) {
				want = append(want, p)
			}
		}
		if got := slices.Collect(reg.Snapshot().PodsSelected("a", selector)); !slices.Equal(got, want) {
			t.Fatalf("%v selects %v, want %v", selector, got, want)
		}
	}
}

// What selects a pod is found by the pod's labels as if all that is in the namespace were looked at, also after selectors have changed.
func TestPoliciesAndServicesForAPodAreThoseThatSelectIt(t *testing.T) {
	reg, err := New()
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(2, 2))
	for range 500 {
		ns, name := []string{"a", "b"}[random.IntN(2)], fmt.Sprint(random.IntN(20))
		id, selector := ns+"/"+name, someLabels(random)
		events := []Event{
			{Policies, id, &Policy{ID: id, Namespace: ns, Policy: authz.Policy{Meta: authz.Meta{Namespace: ns, Name: name}, Selector: selector}}},
			{Services, id, &Service{ID: id, Namespace: ns, Name: name, Selector: selector}},
		}
		if random.IntN(5) == 0 {
			events[0].Object, events[1].Object = nil, nil
		}
		if _, err := reg.Apply(events); err != nil {
			t.Fatal(err)
		}
		labels, now := someLabels(random), reg.Snapshot()
		var policies []*Policy
		for p := range now.Policies() {
			if p.Namespace == "a" && authz.Selects(p.Selector, labels) {
				policies = append(policies, p)
			}
		}
		var services []*Service
		for s := range now.ServicesIn("a") {
			if len(s.Selector) > 0 && authz.Selects(s.Selector, labels) {
				services = append(services, s)
			}
		}
		if got := now.PoliciesFor("a", labels); !slices.Equal(got, policies) {
			t.Fatalf("policies for %v are %v, want %v", labels, got, policies)
		}
		if got := now.ServicesFor("a", labels); !slices.Equal(got, services) {
			t.Fatalf("services for %v are %v, want %v", labels, got, services)
		}
	}
}

func resource(kind string, spec any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"kind": kind, "metadata": map[string]any{"namespace": "a", "name": "p"}, "spec": spec}}
}

func TestStoredPolicyThatCannotBeReadFailsClosed(t *testing.T) {
	options := authz.Options{TrustDomain: "cluster.local", RootNamespace: "root"}
	selector := map[string]any{"matchLabels": map[string]any{"app": "x"}}
	p, err := Policies.Decode(resource("AuthorizationPolicy", map[string]any{"selector": selector, "newField": 1}), options)
	if err != nil {
		t.Fatal(err)
	}
	if d := authz.Evaluate([]authz.Policy{p.Policy}, authz.Request{HTTP: true, Path: "/"}); d.Allowed || len(p.Problems) == 0 || p.Selector["app"] != "x" {
		t.Errorf("AuthorizationPolicy: %+v, %+v", p, d)
	}
	peer, err := PeerAuths.Decode(resource("PeerAuthentication", map[string]any{"mtls": map[string]any{"mode": "LOOSE"}}), options)
	if err != nil {
		t.Fatal(err)
	}
	if peer.Mode != authz.Strict || len(peer.Problems) == 0 {
		t.Errorf("PeerAuthentication: %+v", peer)
	}
	for _, spec := range []any{nil, "text", map[string]any{"selector": 3}, map[string]any{"rules": nil}} {
		for _, k := range Kinds() {
			if e, err := k.Event(resource(k.Resource().Kind, spec), options); k.IsPolicy() && (err != nil || e.Object == nil || e.ID != "a/p") {
				t.Errorf("%s with the spec %v: %+v, %v", k, spec, e, err)
			}
		}
	}
}

func TestSummaryIsBounded(t *testing.T) {
	var v Verdict
	for range 50 {
		v.Problems = append(v.Problems, authz.Problem{Field: "spec.rules", Reason: strings.Repeat("ü\xff", 10000)})
	}
	if s := v.Summary(); len(s) > (maxProblems+1)*(maxReason+10) || !utf8.ValidString(s) || !strings.HasSuffix(s, "; and 40 more") {
		t.Errorf("%d bytes: %.100q", len(s), s)
	}
}

// A range in which Services may have addresses counts as long as it is there: Kubernetes lets it go when none has.
func TestServiceCIDRsCountUntilTheyAreGone(t *testing.T) {
	reg, err := New()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*networking.ServiceCIDR{
		"kubernetes": {Spec: networking.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/12", "fd00::/108"}}},
		"going":      {Spec: networking.ServiceCIDRSpec{CIDRs: []string{"10.200.0.9/24"}}, ObjectMeta: meta.ObjectMeta{DeletionTimestamp: new(meta.Unix(1, 0))}},
	} {
		c.Name = name
		e, err := ServiceCIDRs.Event(c, authz.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := reg.Apply([]Event{e}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for c := range reg.Snapshot().ServiceCIDRs() {
		got = append(got, fmt.Sprint(c.ID, c.Prefixes))
	}
	if want := []string{"going[10.200.0.0/24]", "kubernetes[10.96.0.0/12 fd00::/108]"}; !slices.Equal(got, want) {
		t.Errorf("the ranges are %v, want %v", got, want)
	}
}
