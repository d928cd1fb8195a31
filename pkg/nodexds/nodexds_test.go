package nodexds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"k8s.io/utils/clock"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func resource(t *testing.T, name string, size int) *deltaxds.Resource {
	t.Helper()
	r, err := deltaxds.NewResource(name, &core.Node{Id: strings.Repeat("x", size)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// What is sent without copying resources is what the API's message says.
func TestOutgoingIsAnUpdate(t *testing.T) {
	a, b := resource(t, "a", 3), resource(t, "b", 70000) // lengths of one and of three bytes
	o := &Outgoing{Number: 7, More: true, Words: []*nodev1.Word{{Uid: "u", Layers: []string{"l", "m"}, Refused: "no"}}, Changes: []Change{
		{Layer: "l", Type: deltaxds.ClusterType, Resources: []*deltaxds.Resource{a, b}, Removed: []string{"gone"}},
		{Layer: "m", Type: deltaxds.ListenerType, Removed: []string{"too"}},
	}}
	wire := func(r *deltaxds.Resource) *nodev1.Resource {
		return &nodev1.Resource{Name: r.Name, Version: r.Version, Body: &anypb.Any{TypeUrl: r.Body().GetTypeUrl(), Value: r.Body().GetValue()}}
	}
	want := &nodev1.Update{Number: 7, More: true, Words: o.Words, Changes: []*nodev1.Change{
		{Layer: "l", Type: deltaxds.ClusterType, Resources: []*nodev1.Resource{wire(a), wire(b)}, Removed: []string{"gone"}},
		{Layer: "m", Type: deltaxds.ListenerType, Removed: []string{"too"}},
	}}
	buffers, err := deltaxds.Codec().Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	got := &nodev1.Update{}
	if err := proto.Unmarshal(buffers.Materialize(), got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

func TestUpdateIsSentInPartsOfBoundedSize(t *testing.T) {
	o := &Outgoing{Number: 7, Words: []*nodev1.Word{{Uid: "u"}}}
	want := map[string]string{}
	for layer := range 50 {
		c := Change{Layer: fmt.Sprint(layer), Type: deltaxds.ClusterType, Removed: []string{"gone"}}
		for i := range layer % 7 {
			r := resource(t, fmt.Sprint(i), 40000)
			c.Resources = append(c.Resources, r)
			want[c.Layer+"/"+r.Name] = r.Version
		}
		o.Changes = append(o.Changes, c)
	}
	removed, words := 0, 0
	parts := o.Parts()
	for i, p := range parts {
		size := 0
		for _, c := range p.Changes {
			for _, r := range c.Resources {
				size += len(r.Body().GetValue())
				if want[c.Layer+"/"+r.Name] != r.Version {
					t.Errorf("%s of layer %s is sent twice, or is another", r.Name, c.Layer)
				}
				delete(want, c.Layer+"/"+r.Name)
			}
			removed += len(c.Removed)
		}
		words += len(p.Words)
		if size > partSize || p.Number != 7 || p.More != (i < len(parts)-1) {
			t.Errorf("part %d of %d: %d bytes, number %d, more: %v", i, len(parts), size, p.Number, p.More)
		}
	}
	if len(want) > 0 || removed != 50 || words != 1 || len(parts) < 2 {
		t.Errorf("%d parts, without %v, with %d removals and %d words", len(parts), want, removed, words)
	}
}

// pilot is the other end of a stream in memory.
type pilot struct {
	ctx     context.Context
	reports chan *nodev1.Report
	updates chan *nodev1.Update
}

func (p *pilot) Send(r *nodev1.Report) error {
	select {
	case p.reports <- r:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *pilot) Recv() (*nodev1.Update, error) {
	select {
	case u, ok := <-p.updates:
		if !ok {
			return nil, errors.New("hung up")
		}
		return u, nil
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
}

// What comes is applied though Pilot does not take what is said; the proxies' answers are gathered; a stream that ends begins anew with what is
// here. Time is that of synctest's bubble.
func TestNodeFollowsPilot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(clock.RealClock{}, "")
		n.Add("u", "a/web", "a/web")
		streams := make(chan *pilot)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			n.Run(ctx, func(ctx context.Context) (RPC, error) {
				p := &pilot{ctx, make(chan *nodev1.Report), make(chan *nodev1.Update)}
				select {
				case streams <- p:
					return p, nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}, slog.New(slog.DiscardHandler))
		}()
		p := <-streams
		if r := <-p.reports; len(r.GetPods()) != 1 || r.GetPods()[0].GetName() != "a/web" || r.GetMore() {
			t.Fatalf("it begins with %v", r)
		}
		r := resource(t, "c", 1)
		u, err := (&Outgoing{Number: 1, Words: []*nodev1.Word{{Uid: "u", Layers: []string{"l"}}},
			Changes: []Change{{Layer: "l", Type: deltaxds.ClusterType, Resources: []*deltaxds.Resource{r}}}}).Message()
		if err != nil {
			t.Fatal(err)
		}
		n.Add("v", "a/other", "a/other") // which is said, and not taken
		p.updates <- u
		synctest.Wait()
		proxy := n.Proxy("u", "sidecar~u", "")
		if got, known := proxy.Resource(deltaxds.ClusterType, "c"); !known || got == nil || got.Version != r.Version {
			t.Fatalf("while Pilot does not listen, an update is not applied: %v, %v", got, known)
		}
		if r := <-p.reports; len(r.GetPods()) != 1 || r.GetPods()[0].GetUid() != "v" {
			t.Fatalf("said %v", r)
		}
		for r := range p.reports {
			if r.GetReceived() == 1 {
				break
			}
		}
		stream := deltaxds.NewStream(proxy, clock.RealClock{})
		began := time.Now()
		proxy.Begin(stream)
		stream.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.ClusterType})
		resp := stream.Next()
		stream.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.ClusterType, ResponseNonce: resp.GetNonce()})
		said := 0
		for r := range p.reports {
			said++
			if len(r.GetProxies()) == 0 {
				continue
			}
			if st := r.GetProxies()[0].GetTypes()[0]; st.GetAcked() != 1 || st.GetPending() || r.GetAsOf() != 1 {
				t.Fatalf("said %v", r)
			}
			break
		}
		if passed := time.Since(began); passed > reportEvery || said > 2 {
			t.Fatalf("%d reports in %s", said, passed)
		}
		close(p.updates)
		p = <-streams
		if r := <-p.reports; len(r.GetPods()) != 2 || !r.GetMore() || len(r.GetPods()[0].GetLayers()) != 1 {
			t.Fatalf("it begins again with %v", r)
		}
		if r := <-p.reports; r.GetMore() || len(r.GetHeld()) != 1 || r.GetHeld()[0].GetVersions()["c"] == "" {
			t.Fatalf("it holds %v", r)
		}
		cancel()
		<-done
	})
}
