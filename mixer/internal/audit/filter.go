package audit

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// Filter says which records a reader wants. Empty fields want all.
type Filter struct {
	Namespace string    // of the observing workload, or of the one that a certificate is for
	Kind      string    // request, issuance, admin, trail
	Identity  string    // of source or destination, proven or claimed, or a part of it
	Verdict   string    // allowed, denied, refused
	Trial     string    // allowed, denied, any: what the policies on trial would have decided, where that is something else
	Index     *uint64   // the one record of this index; nil for all
	Since     time.Time // only decisions from then on; zero for all
	Last      int       // only the newest so many of what is there, 0 for all; what follows is not counted
	Follow    bool
}

// ParseFilter reads a filter from a query. Unknown parameters are errors that name them.
func ParseFilter(q url.Values) (Filter, error) {
	var f Filter
	for key, values := range q {
		value := values[len(values)-1]
		var err error
		switch key {
		case "namespace":
			f.Namespace = value
		case "identity":
			f.Identity = value
		case "verdict":
			if _, ok := telemetryv1.Verdict_value["VERDICT_"+strings.ToUpper(value)]; !ok {
				err = fmt.Errorf("use allowed, denied or refused")
			}
			f.Verdict = value
		case "trial":
			if !slices.Contains([]string{"allowed", "denied", "any"}, value) {
				err = fmt.Errorf("use allowed, denied or any")
			}
			f.Trial = value
		case "kind":
			if _, ok := telemetryv1.Kind_value["KIND_"+strings.ToUpper(value)]; !ok {
				err = fmt.Errorf("use request, issuance, admin or trail")
			}
			f.Kind = value
		case "index":
			var index uint64
			index, err = strconv.ParseUint(value, 10, 64)
			f.Index = &index
		case "since":
			f.Since, err = time.Parse(time.RFC3339Nano, value)
		case "last":
			if f.Last, err = strconv.Atoi(value); err == nil && f.Last < 0 {
				err = fmt.Errorf("use 0 for all, or how many")
			}
		case "follow":
			f.Follow, err = strconv.ParseBool(value)
		default:
			err = fmt.Errorf("no such parameter")
		}
		if err != nil {
			return f, fmt.Errorf("parameter %s=%q: %w", key, value, err)
		}
	}
	return f, nil
}

// Matches reports whether a reader with this filter wants the record.
func (f Filter) Matches(r *telemetryv1.Record) bool {
	e := r.GetEvent()
	if f.Index != nil && r.GetIndex() != *f.Index {
		return false
	}
	if f.Namespace != "" && e.GetObserver().GetNamespace() != f.Namespace && e.GetSubject().GetNamespace() != f.Namespace {
		return false
	}
	if f.Kind != "" && e.GetKind() != telemetryv1.Kind(telemetryv1.Kind_value["KIND_"+strings.ToUpper(f.Kind)]) {
		return false
	}
	if f.Identity != "" && !slices.ContainsFunc([]string{e.GetSourceIdentity(), e.GetDestinationIdentity(), e.GetClaimedSource(), e.GetClaimedDestination()},
		func(name string) bool { return strings.Contains(name, f.Identity) }) {
		return false
	}
	if !f.Since.IsZero() && e.GetTime().AsTime().Before(f.Since) {
		return false
	}
	if f.Trial != "" && (e.GetTrial() == nil || f.Trial != "any" && e.GetTrial().GetVerdict() != verdict(f.Trial)) {
		return false
	}
	return f.Verdict == "" || e.GetVerdict() == verdict(f.Verdict)
}

// verdict reads a word of ParseFilter's.
func verdict(word string) telemetryv1.Verdict {
	return telemetryv1.Verdict(telemetryv1.Verdict_value["VERDICT_"+strings.ToUpper(word)])
}

// Select returns the records that match, the newest Last of them.
func (f Filter) Select(records []*telemetryv1.Record) []*telemetryv1.Record {
	var out []*telemetryv1.Record
	for _, r := range records {
		if f.Matches(r) {
			out = append(out, r)
		}
	}
	if f.Last > 0 && len(out) > f.Last {
		out = out[len(out)-f.Last:]
	}
	return out
}
