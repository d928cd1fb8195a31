package spiffe

import (
	"regexp"
	"strings"
	"testing"
)

func TestParseRefusesWhatIsNotCanonical(t *testing.T) {
	for _, uri := range []string{
		"", "spiffe://", "spiffe://cluster.local", "spiffe://cluster.local/ns/a/sa/", "spiffe://cluster.local/ns//sa/b",
		"spiffe://cluster.local/ns/a/sa/b/", "spiffe://cluster.local/ns/../sa/b", "spiffe://cluster.local/ns/a/sa/..",
		"spiffe://cluster.local/ns/%61/sa/b", "spiffe://Cluster.local/ns/a/sa/b", "SPIFFE://cluster.local/ns/a/sa/b",
		"spiffe://cluster.local:1/ns/a/sa/b", "spiffe://u@cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/a/sa/b?x",
		"spiffe://cluster.local/ns/a/sa/b#x", "spiffe://cluster.local/ns/A/sa/b", "spiffe://cluster.local/ns/a/sa/b\x00.evil",
		"https://cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/a/sa/" + strings.Repeat("a", 2049),
	} {
		if id, err := Parse(uri); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", uri, id)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/finance/sa/payroll")
	f.Add("spiffe://td/ns/a/sa/a.b-c")
	f.Fuzz(func(t *testing.T, uri string) {
		id, err := Parse(uri)
		if err != nil {
			return
		}
		if id.String() != uri {
			t.Fatalf("Parse(%q).String() = %q", uri, id.String())
		}
	})
}

// What the proxies take for an identity is what Parse takes, but for lengths.
func TestPatternIsWhatParseTakes(t *testing.T) {
	re := regexp.MustCompile("^(?:" + Pattern("cluster.local", "old.local") + ")$")
	for _, uri := range []string{
		"spiffe://cluster.local/ns/a/sa/b", "spiffe://old.local/ns/a-b/sa/b.c-d", "spiffe://other.local/ns/a/sa/b", "spiffe://clusterxlocal/ns/a/sa/b",
		"spiffe://cluster.local/x/ns/a/sa/b", "spiffe://cluster.local/ns/a/sa/b/c", "spiffe://cluster.local/ns/a.b/sa/b", "spiffe://cluster.local/ns/A/sa/b",
		"spiffe://cluster.local/ns/-a/sa/b", "spiffe://cluster.local/ns/a-/sa/b", "spiffe://cluster.local/ns/a/sa/b..c", "spiffe://cluster.local/ns/a/sa/b-.c",
		"spiffe://cluster.local/ns/a/sa/", "spiffe://cluster.local/ns/a/sa/b\n", "\nspiffe://cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/0/sa/1",
	} {
		id, err := Parse(uri)
		want := err == nil && (id.TrustDomain == "cluster.local" || id.TrustDomain == "old.local")
		if got := re.MatchString(uri); got != want {
			t.Errorf("%q matches: %v, want %v (%v)", uri, got, want, err)
		}
	}
}
