package als

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"
)

// logs is OpenTelemetry's LogsService. A request is read by hand: Envoy puts into its strings what clients sent, and
// protobuf would refuse the whole batch for one byte that is no UTF-8.
var logs = grpc.ServiceDesc{
	ServiceName: "opentelemetry.proto.collector.logs.v1.LogsService",
	HandlerType: (*exporter)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Export", Handler: func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		in := &emptypb.Empty{} // all fields are unknown to it, and kept as they are
		if err := decode(in); err != nil {
			return nil, err
		}
		handle := func(_ context.Context, in any) (any, error) {
			return srv.(exporter).export(in.(*emptypb.Empty).ProtoReflect().GetUnknown())
		}
		if intercept == nil {
			return handle(ctx, in)
		}
		info := &grpc.UnaryServerInfo{Server: srv, FullMethod: "/opentelemetry.proto.collector.logs.v1.LogsService/Export"}
		return intercept(ctx, in, info, handle)
	}}},
	Metadata: "opentelemetry/proto/collector/logs/v1/logs_service.proto",
}

type exporter interface {
	export(request []byte) (*emptypb.Empty, error)
}

var errBatch = errors.New("not a batch of log records")

// each calls f with the fields of a message that are numbered so, and have bytes or 64 bits.
func each(message []byte, number protowire.Number, f func(text []byte, fixed uint64) error) error {
	for len(message) > 0 {
		n, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return errBatch
		}
		message = message[size:]
		size = protowire.ConsumeFieldValue(n, kind, message)
		if size < 0 {
			return errBatch
		}
		if n == number {
			var text []byte
			var fixed uint64
			switch kind {
			case protowire.BytesType:
				text, _ = protowire.ConsumeBytes(message)
			case protowire.Fixed64Type:
				fixed, _ = protowire.ConsumeFixed64(message)
			default:
				return errBatch
			}
			if err := f(text, fixed); err != nil {
				return err
			}
		}
		message = message[size:]
	}
	return nil
}

// records reads an ExportLogsServiceRequest.
func records(request []byte) ([]record, error) {
	var out []record
	err := each(request, 1, func(resource []byte, _ uint64) error { // resource_logs
		return each(resource, 2, func(scope []byte, _ uint64) error { // scope_logs
			return each(scope, 2, func(b []byte, _ uint64) error { // log_records
				r, err := oneRecord(b)
				out = append(out, r)
				return err
			})
		})
	})
	return out, err
}

func oneRecord(b []byte) (record, error) {
	r := record{text: map[string]string{}}
	if err := each(b, 1, func(_ []byte, nanos uint64) error { // time_unix_nano
		r.time = time.Unix(0, int64(nanos))
		return nil
	}); err != nil {
		return r, err
	}
	return r, each(b, 6, func(attribute []byte, _ uint64) error { // attributes
		var key, value string
		err := each(attribute, 1, func(b []byte, _ uint64) error { key = string(b); return nil })
		return errors.Join(err, each(attribute, 2, func(b []byte, _ uint64) error {
			err := each(b, 1, func(b []byte, _ uint64) error { value = string(b); return nil }) // string_value
			r.text[key] = value
			return err
		}))
	})
}
