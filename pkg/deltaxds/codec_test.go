package deltaxds

import (
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/protobuf/proto"
)

func responseOf(t *testing.T, nonce string, resources ...*Resource) *Response {
	t.Helper()
	r := &Response{DeltaDiscoveryResponse: &discovery.DeltaDiscoveryResponse{
		SystemVersionInfo: "v", TypeUrl: ClusterType, Nonce: nonce, RemovedResources: []string{"gone", "away"}}}
	for _, res := range resources {
		r.add(res)
	}
	return r
}

func TestCodecMarshalsWhatTheMessageSays(t *testing.T) {
	var own []*Resource
	for _, id := range []string{"", "x", string(make([]byte, 200)), string(make([]byte, 70000))} { // lengths of one to three bytes
		r, err := NewResource("name of "+id[:min(len(id), 150)], &core.Node{Id: id})
		if err != nil {
			t.Fatal(err)
		}
		own = append(own, r)
	}
	foreign := FromWire(&discovery.Resource{Name: "foreign", Version: "1", Aliases: []string{"other"}, Resource: own[1].Body()})
	for name, resp := range map[string]*Response{
		"nothing": responseOf(t, "1"), "own": responseOf(t, "2", own...), "foreign": responseOf(t, "3", foreign),
		"both": responseOf(t, "4", foreign, own[0], own[3]),
	} {
		for which, c := range map[string]encoding.CodecV2{"Codec": Codec(), "gRPC's own": encoding.GetCodecV2(grpcproto.Name)} {
			data, err := c.Marshal(resp)
			if err != nil {
				t.Fatal(err)
			}
			wire := data.Materialize()
			data.Free()
			var got discovery.DeltaDiscoveryResponse
			if err := proto.Unmarshal(wire, &got); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(&got, resp.DeltaDiscoveryResponse) {
				t.Errorf("%s by %s: got %v, want %v", name, which, &got, resp.DeltaDiscoveryResponse)
			}
		}
	}
}

func TestCodecTreatsOtherMessagesLikeGRPC(t *testing.T) {
	want := &core.Node{Id: "n"}
	data, err := Codec().Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got core.Node
	if err := Codec().Unmarshal(data, &got); err != nil || !proto.Equal(&got, want) {
		t.Fatalf("got %v, %v", &got, err)
	}
}

// What many streams send is in memory once, and so is what is kept to look at.
func TestStreamsShareTheBytesOfAResource(t *testing.T) {
	res, err := NewResource("r", &core.Node{Id: string(make([]byte, 5000))})
	if err != nil {
		t.Fatal(err)
	}
	last := func(nonce string) *byte {
		data, err := Codec().Marshal(responseOf(t, nonce, res))
		if err != nil {
			t.Fatal(err)
		}
		b := data[len(data)-1].ReadOnlyData()
		return &b[len(b)-1]
	}
	body := res.Body().GetValue()
	if one, two := last("1"), last("2"); one != two || one != &body[len(body)-1] {
		t.Fatal("the resource was copied")
	}
}
