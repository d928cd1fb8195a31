package callers

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	metricsservice "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity/identitytest"
)

// wire is what a client sends: messages of one stream, in frames of so many bytes.
func wire(t *testing.T, frame int, messages ...[]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	out.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&out, nil)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		b := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
		for len(b) > 0 {
			n := min(frame, len(b))
			if err := f.WriteData(1, false, b[:n]); err != nil {
				t.Fatal(err)
			}
			b = b[n:]
		}
		if err := f.WriteWindowUpdate(0, 10); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.WriteData(1, true, nil); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestWhatClientsSendIsReadAlong(t *testing.T) {
	var many [][]byte
	for i := range 1000 {
		many = append(many, make([]byte, i))
	}
	for name, c := range map[string]struct {
		sent  []byte
		begun int
		says  string
	}{
		"many messages":             {wire(t, 16<<10, many...), 0, ""},
		"in small frames":           {wire(t, 300, many...), 0, ""},
		"of the largest size":       {wire(t, 16<<10, make([]byte, large), make([]byte, small), make([]byte, small+1)), large + small + 1, ""},
		"too large":                 {wire(t, 16<<10, make([]byte, large+1)), 0, "allowed"},
		"in crumbs":                 {wire(t, 1, make([]byte, 1000)), 0, "crumbs"},
		"large, in crumbs":          {wire(t, 100, make([]byte, 1<<20)), 1 << 20, "crumbs"},
		"compressed":                {append(wire(t, 10), 0, 0, 5, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 9), 0, "compressed"},
		"with padding":              {append(wire(t, 10), 0, 0, 5, 0, 8, 0, 0, 0, 1), 0, "padded"},
		"streams that do not begin": {append(wire(t, 10), bytes.Repeat([]byte{0, 0, 0, 1, 4, 0, 0, 0, 3}, 2000)...), 0, ""},
	} {
		for _, piece := range []int{1, 1000, 1 << 20} {
			f := newFrames(large)
			var err error
			for b := c.sent; len(b) > 0 && err == nil; b = b[min(piece, len(b)):] {
				err = f.read(b[:min(piece, len(b))])
			}
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s, in pieces of %d: %v", name, piece, err)
			}
			if f.begun != c.begun || err == nil && len(f.open) > 0 {
				t.Errorf("%s, in pieces of %d: %d bytes have begun, %d streams open", name, piece, f.begun, len(f.open))
			}
		}
	}
	f := newFrames(large)
	err := f.read([]byte(http2.ClientPreface))
	for i := uint32(1); err == nil && i < 3000; i += 2 {
		err = f.read(binary.BigEndian.AppendUint32([]byte{0, 0, 1, 0, 0}, i))
		if err == nil {
			err = f.read([]byte{0})
		}
	}
	if err == nil {
		t.Error("streams without end are remembered without end")
	}
}

// push is what Envoy sends of so many series.
func push(series int) *metricsservice.StreamMetricsMessage {
	out := &metricsservice.StreamMetricsMessage{Identifier: &metricsservice.StreamMetricsMessage_Identifier{Node: &core.Node{Id: "sidecar~10.0.0.1~p.finance~x"}}}
	for i := range series {
		m := &dto.Metric{Histogram: &dto.Histogram{SampleCount: proto.Uint64(100), SampleSum: proto.Float64(1)}}
		for b := range 20 {
			m.Histogram.Bucket = append(m.Histogram.Bucket, &dto.Bucket{CumulativeCount: proto.Uint64(uint64(b)), UpperBound: proto.Float64(float64(b))})
		}
		for l := range 18 {
			m.Label = append(m.Label, &dto.LabelPair{Name: proto.String(fmt.Sprintf("destination_label_%d", l)), Value: proto.String(fmt.Sprintf("value-%d", i))})
		}
		out.EnvoyMetrics = append(out.EnvoyMetrics, &dto.MetricFamily{Name: proto.String("istio.istio_request_duration_milliseconds"), Type: dto.MetricType_HISTOGRAM.Enum(), Metric: []*dto.Metric{m}})
	}
	return out
}

func TestMessagesAreDecodedWithinTheirMeans(t *testing.T) {
	names := &discovery.DeltaDiscoveryRequest{InitialResourceVersions: map[string]string{}}
	for i := range 2000 {
		name := fmt.Sprintf("outbound|8080||service-%d.namespace.svc.cluster.local", i)
		names.ResourceNamesSubscribe = append(names.ResourceNamesSubscribe, name)
		names.InitialResourceVersions[name] = "0123456789abcdef"
	}
	deep := structpb.NewNullValue()
	for range 100 {
		deep = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{deep}})
	}
	logs := &emptypb.Empty{}
	for name, c := range map[string]struct {
		wire []byte
		into proto.Message
		good bool
	}{
		"statistics":                 {encoded(t, push(5000)), &metricsservice.StreamMetricsMessage{}, true},
		"all that fit":               {encoded(t, push(13_000)), &metricsservice.StreamMetricsMessage{}, true},
		"few statistics":             {encoded(t, push(40)), &metricsservice.StreamMetricsMessage{}, true},
		"names":                      {encoded(t, names), &discovery.DeltaDiscoveryRequest{}, true},
		"one name":                   {encoded(t, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default"}}), &discovery.DeltaDiscoveryRequest{}, true},
		"logs":                       {make([]byte, maxLogs+1), logs, false},
		"families of nothing":        {bytes.Repeat([]byte{0x12, 0}, large/2), &metricsservice.StreamMetricsMessage{}, false},
		"fewer families of nothing":  {bytes.Repeat([]byte{0x12, 0}, small/2), &metricsservice.StreamMetricsMessage{}, false},
		"names of nothing":           {bytes.Repeat([]byte{0x1a, 0}, large/2), &discovery.DeltaDiscoveryRequest{}, false},
		"deeper than anybody thinks": {encoded(t, &structpb.ListValue{Values: []*structpb.Value{deep}}), &structpb.ListValue{}, false},
		"garbage":                    {[]byte{0xff, 0xff}, &discovery.DeltaDiscoveryRequest{}, false},
	} {
		if len(c.wire) > large {
			t.Errorf("%s: %d bytes", name, len(c.wire))
		}
		err := newCodec(newTurn()).Unmarshal(mem.BufferSlice{mem.SliceBuffer(c.wire)}, c.into)
		if (err == nil) != c.good {
			t.Errorf("%s, %d bytes: %v", name, len(c.wire), err)
		}
	}
}

func encoded(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type stream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stream) Context() context.Context { return s.ctx }

func TestOthersCannotTakeTheProxysStreamsOfConfiguration(t *testing.T) {
	c := New(identitytest.Quiet)
	of := func(proxy bool) grpc.ServerStream {
		return stream{ctx: peer.NewContext(context.Background(), &peer.Peer{Addr: address{&caller{proxy: proxy}}})}
	}
	info := &grpc.StreamServerInfo{FullMethod: discovery.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName}
	for range 2 { // what ends makes room
		depth := 0
		var again grpc.StreamHandler
		again = func(any, grpc.ServerStream) error {
			depth++
			return c.limitStreams(nil, of(false), info, again)
		}
		if err := again(nil, nil); status.Code(err) != codes.ResourceExhausted || depth != ofConfiguration+1 {
			t.Errorf("%d streams of others, %v", depth-1, err)
		}
	}
	full := false
	err := c.limitStreams(nil, of(false), info, func(any, grpc.ServerStream) error {
		return c.limitStreams(nil, of(false), info, func(any, grpc.ServerStream) error {
			return c.limitStreams(nil, of(false), info, func(any, grpc.ServerStream) error {
				full = true
				return c.limitStreams(nil, of(true), info, func(any, grpc.ServerStream) error { return nil })
			})
		})
	})
	if err != nil || !full {
		t.Errorf("the proxy beside others: %v", err)
	}
}
