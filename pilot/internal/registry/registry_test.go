package registry

import (
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

func TestProtocol(t *testing.T) {
	for _, c := range []struct {
		app, name string
		number    uint32
		want      Protocol
		first     bool
	}{
		{"", "http", 80, HTTP, false}, {"", "http-web", 80, HTTP, false}, {"", "grpc-web-x", 80, HTTP, false}, {"", "grpc", 80, HTTP2, false},
		{"", "https", 443, TCP, false}, {"", "web", 80, Auto, false}, {"kubernetes.io/h2c", "tcp", 80, HTTP2, false}, {"http", "tcp", 80, HTTP, false},
		{"unknown.example/x", "http", 80, Auto, false}, {"", "", 3306, TCP, true}, {"", "mysql", 1, TCP, true}, {"", "tcp-x", 3306, TCP, true},
		{ServerFirstProtocol, "http", 80, TCP, true}, {"", "http", 25, HTTP, false},
	} {
		if got := ProtocolOf(c.app, c.name, c.number); got != c.want || ServerFirst(c.app, c.name, c.number) != c.first {
			t.Errorf("%+v: got %s", c, got)
		}
	}
}

func TestChangesAreWhatChanged(t *testing.T) {
	reg, err := New()
	if err != nil {
		t.Fatal(err)
	}
	pod := func(ip string) Event { return Event{Pods, "a/p", &Pod{ID: "a/p", Namespace: "a", Name: "p", IP: ip}} }
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

func TestRelistThatEmptiesTheWorldIsHeld(t *testing.T) {
	now := time.Now()
	later := now.Add(settleTime)
	size := func(Kind) int { return 10 }
	suspect := func(n int) *guard {
		g := newGuard()
		for i := range n {
			g.suspect(eventKey{Services, fmt.Sprint(i)}, now)
		}
		return g
	}
	g := suspect(6)
	if released, held := g.judge(now, size); len(released) != 0 || held != 0 {
		t.Error("judged before the list was through")
	}
	if released, held := g.judge(later, size); len(released) != 0 || held != 6 {
		t.Errorf("released %d, held %d of 6", len(released), held)
	}
	g.clear(eventKey{Services, "0"}) // it is there after all
	if released, held := g.judge(later, size); len(released) != 5 || held != 0 {
		t.Errorf("half of the world: released %d, held %d", len(released), held)
	}
	g = suspect(9)
	g.judge(later, size)
	if got := g.held(); len(got) != 1 || got[0].Kind != string(Services) || got[0].Count != 9 || len(got[0].Some) != 9 || got[0].Some[0] != "0" {
		t.Errorf("held: %+v", got)
	}
	if err := g.confirm(8); err == nil {
		t.Error("confirmed what nobody has seen")
	}
	if released, held := g.judge(later, size); len(released) != 0 || held != 9 {
		t.Errorf("after a refused confirmation: released %d, held %d", len(released), held)
	}
	if err := g.confirm(9); err != nil {
		t.Error(err)
	}
	if released, _ := g.judge(later, size); len(released) != 9 {
		t.Errorf("confirmed: released %d of 9", len(released))
	}
	if err := g.confirm(0); err == nil {
		t.Error("there is nothing to confirm")
	}
	g = newGuard()
	for i := range 6 {
		g.suspect(eventKey{Policies, fmt.Sprint(i)}, now)
	}
	if released, held := g.judge(later, size); len(released) != 0 || held != 6 {
		t.Errorf("policies: released %d, held %d of 6", len(released), held)
	}
	g.suspect(eventKey{Services, "late"}, later)
	if released, held := g.judge(later, size); len(released) != 0 || held != 7 || g.settleIn(later) > settleTime {
		t.Errorf("more while some are held: released %d, held %d, settles in %v", len(released), held, g.settleIn(later))
	}
	if released, _ := suspect(3).judge(later, size); len(released) != 3 {
		t.Errorf("an ordinary relist: released %d of 3", len(released))
	}
}

func resource(kind string, spec any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"kind": kind, "metadata": map[string]any{"namespace": "a", "name": "p"}, "spec": spec}}
}

func TestStoredPolicyThatCannotBeReadFailsClosed(t *testing.T) {
	options := authz.Options{TrustDomain: "cluster.local", RootNamespace: "root"}
	selector := map[string]any{"matchLabels": map[string]any{"app": "x"}}
	p := FromAuthorizationPolicy(resource("AuthorizationPolicy", map[string]any{"selector": selector, "newField": 1}), options)
	if d := authz.Evaluate([]authz.Policy{p.Policy}, authz.Request{HTTP: true, Path: "/"}); d.Allowed || len(p.Problems) == 0 || p.Selector["app"] != "x" {
		t.Errorf("AuthorizationPolicy: %+v, %+v", p, d)
	}
	peer := FromPeerAuthentication(resource("PeerAuthentication", map[string]any{"mtls": map[string]any{"mode": "LOOSE"}}), options)
	if peer.Mode != authz.Strict || len(peer.Problems) == 0 {
		t.Errorf("PeerAuthentication: %+v", peer)
	}
	for _, spec := range []any{nil, "text", map[string]any{"selector": 3}, map[string]any{"rules": nil}} {
		FromAuthorizationPolicy(resource("AuthorizationPolicy", spec), options)
		FromPeerAuthentication(resource("PeerAuthentication", spec), options)
		FromRequestAuthentication(resource("RequestAuthentication", spec))
	}
}
