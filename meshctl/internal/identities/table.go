package identities

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// maxFailure is what of an error fits into a line; show has all of it.
const maxFailure = 60

// WriteTable writes entries as they are at a time, one a line, with tabs between columns.
func WriteTable(out io.Writer, entries []Entry, now time.Time) {
	fmt.Fprintln(out, "IDENTITY\tHELD BY\tSERIAL\tISSUER\tAGE\tEXPIRES\tNEXT ROTATION\tSTATE\tLAST FAILURE")
	for _, e := range entries {
		state := e.State
		if e.RevokedBy != "" {
			state = StateRevoked
		}
		fmt.Fprintln(out, strings.Join([]string{
			cmp.Or(Short(e.Identity), "?"), e.HeldBy.String(), cmp.Or(e.Serial, "-"), ShortKey(e.IssuerKeyID),
			age(e.NotBefore, now), In(e.NotAfter, now), In(e.NextRenewal, now), state, failure(e.LastError),
		}, "\t"))
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

// failure is the beginning of an error, on one line: it may quote what a stranger sent.
func failure(text string) string {
	if text == "" {
		return "-"
	}
	text = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)), " ")
	if runes := []rune(text); len(runes) > maxFailure {
		return string(runes[:maxFailure]) + "…"
	}
	return text
}

// WriteRevocations writes revocations as they are at a time, one a line.
func WriteRevocations(out io.Writer, list revocation.List, now time.Time) {
	fmt.Fprintln(out, "NAME\tIDENTITY\tCERTIFICATE\tAGE\tENDS\tBY\tREASON")
	for _, r := range list {
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, Short(r.Identity), cmp.Or(r.Serial, "all"),
			duration.HumanDuration(now.Sub(r.Created)), In(&r.Expires, now), cmp.Or(r.By, "-"), failure(r.Reason))
	}
}
