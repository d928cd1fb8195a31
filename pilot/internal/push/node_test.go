package push

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus/testutil"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds/nodexdstest"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// on puts a pod on a node.
func on(node string, e registry.Event) registry.Event {
	e.Object.(*registry.Pod).Node = node
	return e
}

// call is a stream to Pilot, spoken by hand. It ends with the test.
func (m *testMesh) call(certificate *x509.Certificate) nodexds.RPC {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.t.Context())
	rpc, err := nodexdstest.Dial(m.server, certificate)(ctx)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(cancel)
	return rpc
}

func has(ids ...string) *nodev1.Report {
	out := &nodev1.Report{}
	for _, id := range ids {
		_, uid, _ := strings.Cut(id, "/")
		out.Pods = append(out.Pods, &nodev1.Pod{Uid: uid, Name: id})
	}
	return out
}

func send(t *testing.T, rpc nodexds.RPC, r *nodev1.Report) {
	t.Helper()
	if err := rpc.Send(r); err != nil {
		t.Fatal(err)
	}
}

// update returns the next one, in all its parts.
func update(t *testing.T, rpc nodexds.RPC) *nodev1.Update {
	t.Helper()
	var out *nodev1.Update
	for {
		u, err := rpc.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if out == nil {
			out = u
		} else {
			out.Changes = append(out.Changes, u.GetChanges()...)
		}
		if !u.GetMore() {
			return out
		}
	}
}

func TestWhoIsNoAgentIsRefused(t *testing.T) {
	const agent = "spiffe://cluster.local/ns/bulwark-system/sa/bulwark-agent"
	pod := spiffe.Pod{Name: "x", UID: "u", Node: nodeName}
	for _, c := range []struct {
		name string
		of   *x509.Certificate
		want codes.Code
	}{
		{"no certificate", nil, codes.Unauthenticated},
		{"two identities", func() *x509.Certificate {
			c := nodexdstest.Certificate(t, agent, pod)
			c.URIs = append(c.URIs, c.URIs[0])
			return c
		}(), codes.Unauthenticated},
		{"a pod of the mesh", nodexdstest.Certificate(t, "spiffe://cluster.local/ns/shop/sa/a", pod), codes.PermissionDenied},
		{"the account in another namespace", nodexdstest.Certificate(t, "spiffe://cluster.local/ns/shop/sa/bulwark-agent", pod), codes.PermissionDenied},
		{"another component", nodexdstest.Certificate(t, "spiffe://cluster.local/ns/bulwark-system/sa/bulwark-mixer", pod), codes.PermissionDenied},
		{"another trust domain", nodexdstest.Certificate(t, "spiffe://evil/ns/bulwark-system/sa/bulwark-agent", pod), codes.PermissionDenied},
		{"no node", nodexdstest.Certificate(t, agent, spiffe.Pod{}), codes.PermissionDenied},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMesh(t)
			m.apply(only("shop", "a"))
			rpc := m.call(c.of)
			go func() { _ = rpc.Send(has("shop/a-0")) }() // which nobody may listen to
			if _, err := rpc.Recv(); status.Code(err) != c.want {
				t.Fatalf("got %v, want %v", err, c.want)
			}
		})
	}
}

// only is pod <app>-0.
func only(ns, app string) registry.Event { return pod(ns, app, app+"-0", "10.1.0.1") }

// An agent's certificate in the wrong hands reads the configuration of its own node's pods and of no others, whatever it asks for and says that
// it has already.
func TestAgentReadsNothingOfAnotherNodesPods(t *testing.T) {
	m := newMesh(t)
	m.apply(only("shop", "a"), on("node-2", only("bank", "b")), deny("shop", "p", "a"), deny("bank", "p", "b"))
	victim := m.call(agentOn(t, nodeName))
	send(t, victim, has("shop/a-0"))
	secret := map[string]map[string]string{} // what only pods of the other node have, by layer
	words := update(t, victim)
	for _, c := range words.GetChanges() {
		if secret[c.GetLayer()] == nil {
			secret[c.GetLayer()] = map[string]string{}
		}
		for _, r := range c.GetResources() {
			secret[c.GetLayer()][r.GetName()] = r.GetVersion()
		}
	}
	thief := m.call(agentOn(t, "node-2"))
	opening := has("shop/a-0", "bank/b-0")
	opening.Pods[0].Layers = words.GetWords()[0].GetLayers()
	opening.More = true
	send(t, thief, opening)
	held := &nodev1.Report{}
	for layer := range secret {
		held.Held = append(held.Held, &nodev1.Held{Layer: layer, Type: deltaxds.ListenerType, Versions: map[string]string{"virtualInbound": "old"}})
	}
	send(t, thief, held)
	u := update(t, thief)
	var own []string
	for _, w := range u.GetWords() {
		switch w.GetUid() {
		case "b-0":
			own = w.GetLayers()
		case "a-0":
			if len(w.GetLayers()) > 0 || w.GetRefused() == "" {
				t.Errorf("of the other node's pod it is told %v", w)
			}
		}
	}
	if len(own) == 0 {
		t.Fatal("it is told nothing of its own pod")
	}
	look := func(u *nodev1.Update) {
		t.Helper()
		for _, c := range u.GetChanges() {
			if !slices.Contains(own, c.GetLayer()) {
				t.Errorf("it is told of layer %s", c.GetLayer())
			}
		}
	}
	look(u)
	if n := testutil.ToFloat64(m.store.metrics.refused.WithLabelValues("unauthorized")); n != 1 {
		t.Errorf("%v refusals are counted", n)
	}
	send(t, thief, &nodev1.Report{Received: u.GetNumber()})
	m.apply(deny("shop", "q", "a"), deny("bank", "q", "b"))
	if u = update(t, thief); len(u.GetChanges()) == 0 {
		t.Fatal("it is not told of its own pod's policy")
	}
	look(u)
	shared := 0
	for layer := range secret {
		if slices.Contains(own, layer) {
			shared++
		}
	}
	if shared == len(secret) {
		t.Fatal("the pods have all layers in common: this shows nothing")
	}
}

// Another pod of the same name is another pod: the one that was there has nothing from here any more, and keeps what it has.
func TestPodWhoseNameIsAnothersHasNothing(t *testing.T) {
	m := newMesh(t)
	m.apply(only("shop", "a"))
	p := m.connect("shop/a-0", deltaxds.ListenerType)
	p.take(t, "lds", 4)
	other := only("shop", "a")
	other.Object.(*registry.Pod).UID, other.Object.(*registry.Pod).ServiceAccount = "new", "b"
	m.apply(other)
	eventually(t, "the pod is no subject any more", func() bool { return len(m.subjects()) == 0 })
	m.apply(service("shop", "web", 80))
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.removed["lds"]) > 0 {
		t.Fatalf("it has lost %v", p.removed)
	}
}

// Whose proxy has seen an unknown key is heard of, if the pod is the agent's: however an agent tells it, of others it can say nothing.
func TestUnknownKeysAreHeardOf(t *testing.T) {
	m := newMesh(t)
	heard := make(chan string, 10)
	m.server.options.UnknownKey = func(pod string) { heard <- pod }
	elsewhere := only("shop", "b")
	elsewhere.Object.(*registry.Pod).Node = "node-2"
	m.apply(only("shop", "a"), elsewhere)
	n := m.node(nodeName)
	n.Add("a-0", "shop/a-0", "spiffe://cluster.local/ns/shop/sa/a")
	n.Add("b-0", "shop/b-0", "spiffe://cluster.local/ns/shop/sa/b")
	eventually(t, "the pod is a subject", func() bool { return slices.Equal(m.subjects(), []string{"a-0"}) })
	for range 3 {
		n.UnknownKey("b-0")
		n.UnknownKey("nobody")
		n.UnknownKey("a-0")
		if pod := <-heard; pod != "shop/a-0" {
			t.Fatalf("heard of %q", pod)
		}
	}
	if len(heard) > 0 {
		t.Errorf("heard of %q, too", <-heard)
	}
}

// subjects are the pods that have configuration from here.
func (m *testMesh) subjects() (out []string) {
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	for a := range m.store.agents {
		for uid, p := range a.pods {
			if p.admitted {
				out = append(out, uid)
			}
		}
	}
	slices.Sort(out)
	return out
}

// What all agents together may cost is bounded; who was refused for that is served when another has gone.
func TestPodsAreServedWhileThereIsRoom(t *testing.T) {
	m := newMesh(t)
	m.server.options.MaxProxies = 2
	m.apply(only("shop", "a"), only("shop", "b"), only("shop", "c"), only("shop", "d"))
	rpc := m.call(agentOn(t, nodeName))
	send(t, rpc, has("shop/a-0", "shop/b-0", "shop/c-0", "shop/d-0"))
	refused := 0
	u := update(t, rpc)
	for _, w := range u.GetWords() {
		if w.GetRefused() != "" {
			refused++
		}
	}
	if all := m.subjects(); refused != 2 || !slices.Equal(all, []string{"a-0", "b-0"}) {
		t.Fatalf("%d are refused, and %v served", refused, all)
	}
	send(t, rpc, &nodev1.Report{Received: u.GetNumber(), Pods: []*nodev1.Pod{{Uid: "a-0", Gone: true}}})
	eventually(t, "another takes the place", func() bool { all := m.subjects(); return len(all) == 2 && all[0] == "b-0" })
	send(t, rpc, &nodev1.Report{Pods: []*nodev1.Pod{{Uid: "b-0", Gone: true}}})
	eventually(t, "the last takes the place", func() bool { return slices.Equal(m.subjects(), []string{"c-0", "d-0"}) })
	var many []string
	for i := range maxPods {
		many = append(many, fmt.Sprintf("shop/x-%d", i))
	}
	send(t, rpc, has(many...))
	for {
		if _, err := rpc.Recv(); err != nil {
			if status.Code(err) != codes.ResourceExhausted {
				t.Fatalf("with more pods than a node can have: %v", err)
			}
			break
		}
	}
	eventually(t, "nothing of the agent is left", func() bool {
		m.store.mu.Lock()
		defer m.store.mu.Unlock()
		return len(m.store.agents)+len(m.store.following)+len(m.store.pods)+len(m.store.full)+m.store.admitted+len(m.store.bytes) == 0
	})
}

// An agent that takes nothing holds up no other, costs no more than the names of what changes meanwhile, and is told of.
func TestAgentThatTakesNothingIsReportedAndHoldsUpNobody(t *testing.T) {
	m := newMesh(t)
	clock, events := clocktesting.NewFakeClock(time.Now()), &noted{}
	m.server.options.Clock, m.server.options.Recorder = clock, events
	m.apply(service("a", "web", 80), only("a", "web"), on("node-2", only("a", "other")))
	stuck := m.call(agentOn(t, "node-2"))
	send(t, stuck, has("a/other-0"))
	p := m.connect("a/web-0", deltaxds.ClusterType)
	p.take(t, "cds", 4)
	eventually(t, "something is on its way to both", func() bool { return testutil.ToFloat64(m.store.metrics.updates) >= 2 })
	for i := range 100 {
		name := fmt.Sprintf("s%d", i)
		m.apply(service("a", name, 80))
		p.take(t, "cds", 1)
	}
	first := update(t, stuck)
	if first.GetNumber() != 1 {
		t.Fatalf("it begins with update %d", first.GetNumber())
	}
	send(t, stuck, &nodev1.Report{Received: 1})
	second := update(t, stuck)
	var clusters int
	for _, c := range second.GetChanges() {
		if c.GetType() == deltaxds.ClusterType {
			clusters += len(c.GetResources())
		}
	}
	if clusters != 100 {
		t.Fatalf("what it has not taken comes in an update of %d clusters", clusters)
	}
	eventually(t, "the stream ends", func() bool {
		clock.Step(deltaxds.StallLimit)
		return testutil.ToFloat64(m.store.metrics.stalled.WithLabelValues("node")) == 1
	})
	if _, err := stuck.Recv(); status.Code(err) != codes.Aborted {
		t.Fatalf("it ends with %v", err)
	}
	const want = "Warning bulwark-system/agent-node-2 u-node-2 ProxyNotUpdated SendConfiguration: the proxies of the node go on with old configuration: "
	if events.count() != 1 || !strings.HasPrefix(events.said[0], want) {
		t.Fatalf("events %q", events.said)
	}
	m.apply(service("a", "last", 80))
	p.take(t, "cds", 1)
}

// Synced is what Envoy has taken; what it refuses is shown with its name and Envoy's reason.
func TestStatusIsWhatTheProxyHasTaken(t *testing.T) {
	m := newMesh(t)
	m.apply(service("a", "web", 80), only("a", "web"))
	held := &holding{proxy: m.unconnected()}
	held.begin(m, "a/web-0", deltaxds.ClusterType, deltaxds.ListenerType)
	state := func() ProxyStatus {
		if all := m.store.Proxies(); len(all) == 1 {
			return all[0]
		}
		return ProxyStatus{}
	}
	eventually(t, "both are sent", func() bool { return state().Types["CDS"].Sent == 1 })
	held.answer("")
	eventually(t, "clusters are taken", func() bool { return state().Types["CDS"].Acked == 1 && state().Types["LDS"].Sent == 1 })
	if st := state(); st.Synced || st.Types["CDS"].Pending || !st.Types["LDS"].Pending || st.Proxy != "web-0.a" || st.Node != "sidecar~a/web-0" ||
		st.Identity != "spiffe://cluster.local/ns/a/sa/web" {
		t.Fatalf("before the proxy has answered: %+v", st)
	}
	held.answer("")
	eventually(t, "it is synced", func() bool { return state().Synced })
	m.apply(service("a", "other", 80))
	if state().Synced {
		t.Fatal("it is synced while a change is under way")
	}
	eventually(t, "it is sent", func() bool { return state().Types["CDS"].Sent == 2 })
	held.answer("no such cluster")
	eventually(t, "it is refused", func() bool { return state().Types["CDS"].Nacked == 1 })
	if st := state().Types["CDS"]; st.Error != "no such cluster" || st.Resource != "outbound|80||other.a.svc.cluster.local" {
		t.Fatalf("what is refused: %+v", st)
	}
	held.cancel()
	eventually(t, "it is not listed when it has gone", func() bool { return len(m.store.Proxies()) == 0 })
}

// holding is a proxy that answers when it is told to.
type holding struct {
	*proxy
	mu   sync.Mutex
	owed []*discovery.DeltaDiscoveryResponse
}

func (m *testMesh) unconnected() *proxy {
	ctx, cancel := context.WithCancel(m.t.Context())
	return &proxy{ctx: ctx, cancel: cancel, in: make(chan *discovery.DeltaDiscoveryRequest), done: make(chan error, 1)}
}

func (h *holding) begin(m *testMesh, pod string, types ...string) {
	go func() { h.done <- m.serve(pod, h) }()
	m.t.Cleanup(func() { h.cancel(); <-h.done })
	for _, url := range types {
		h.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: url}
	}
}

func (h *holding) Send(r *discovery.DeltaDiscoveryResponse) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.owed = append(h.owed, r)
	return nil
}

// answer answers the oldest response, with an error if there is one.
func (h *holding) answer(refusal string) {
	h.mu.Lock()
	r := h.owed[0]
	h.owed = h.owed[1:]
	h.mu.Unlock()
	req := &discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
	if refusal != "" {
		req.ErrorDetail = &rpcstatus.Status{Message: refusal}
	}
	h.in <- req
}
