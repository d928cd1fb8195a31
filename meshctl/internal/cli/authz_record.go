package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/url"
	"strconv"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/pilot/explain"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// recordOf gets a record of the audit trail by its index.
func recordOf(ctx context.Context, client *kube.Client, m *explain.Mesh, index uint64) (*explain.Recorded, error) {
	records, err := recordsOf(ctx, client, url.Values{"index": {strconv.FormatUint(index, 10)}})
	if err != nil {
		return nil, err
	}
	if len(records) == 0 {
		return nil, fmt.Errorf("Mixer has no record %d at hand: it has the newest ones, as many as meshctl audit tail --last 0 shows", index)
	}
	return m.Recorded(records[0])
}

// recordsOf gets records from Mixer.
func recordsOf(ctx context.Context, client *kube.Client, query url.Values) ([]*telemetryv1.Record, error) {
	conn, err := mixerOf(ctx, client)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	body, err := conn.Get(ctx, "/v1/audit?"+query.Encode())
	if err != nil {
		return nil, fmt.Errorf("asking Mixer: %w", err)
	}
	defer body.Close()
	return readRecords(body)
}

// readRecords reads records as lines of JSON, as Mixer and meshctl audit tail -o json write them.
func readRecords(in io.Reader) (out []*telemetryv1.Record, err error) {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		if len(lines.Bytes()) == 0 {
			continue
		}
		record := &telemetryv1.Record{}
		// A Mixer that is newer may say more than this meshctl knows.
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(lines.Bytes(), record); err != nil {
			return nil, fmt.Errorf("line %d is no record of the audit trail: %w", n, err)
		}
		out = append(out, record)
	}
	return out, lines.Err()
}
