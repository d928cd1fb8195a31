package identities

import (
	"cmp"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// maxFailure is what of an error fits into a line; show has all of it.
const maxFailure = 60

// WriteTable writes entries as they are at a time, one a line.
func WriteTable(out *printer.Printer, entries []Entry, now time.Time) {
	t := out.Table("IDENTITY", "HELD BY", "SERIAL", "ISSUER", "AGE", "EXPIRES", "NEXT ROTATION", "STATE", "LAST FAILURE")
	defer t.Flush()
	for _, e := range entries {
		state := e.State
		if e.RevokedBy != "" {
			state = StateRevoked
		}
		t.Row(
			cmp.Or(Short(e.Identity), "?"), e.HeldBy.String(), cmp.Or(e.Serial, "-"), ShortKey(e.IssuerKeyID),
			age(e.NotBefore, now), In(e.NotAfter, now), In(e.NextRenewal, now), state, failure(e.LastError),
		)
	}
}

// ShortKey is as much of a key ID as tells the CAs of a mesh apart.
func ShortKey(id string) string { return cmp.Or(id[:min(8, len(id))], "-") }

// age is the time since a certificate was issued: it is dated back by mesh.Backdate.
func age(notBefore *time.Time, now time.Time) string {
	if notBefore == nil {
		return "-"
	}
	return duration.HumanDuration(max(0, now.Sub(notBefore.Add(mesh.Backdate))))
}

// In says when a moment is, from now.
func In(at *time.Time, now time.Time) string {
	switch {
	case at == nil:
		return "-"
	case at.Before(now):
		return duration.HumanDuration(now.Sub(*at)) + " ago"
	default:
		return "in " + duration.HumanDuration(at.Sub(now))
	}
}

// failure is the beginning of an error.
func failure(text string) string {
	if text == "" {
		return "-"
	}
	if runes := []rune(text); len(runes) > maxFailure {
		return string(runes[:maxFailure]) + "…"
	}
	return text
}

// WriteRevocations writes revocations as they are at a time, one a line.
func WriteRevocations(out *printer.Printer, list revocation.List, now time.Time) {
	t := out.Table("NAME", "IDENTITY", "CERTIFICATE", "AGE", "ENDS", "BY", "REASON")
	defer t.Flush()
	for _, r := range list {
		t.Row(r.Name, Short(r.Identity), cmp.Or(r.Serial, "all"),
			duration.HumanDuration(now.Sub(r.Created)), In(&r.Expires, now), cmp.Or(r.By, "-"), failure(r.Reason))
	}
}
