package analyze

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// What keeps an external authorizer from being asked is said, each in its words, and nothing of one that can be.
func TestAuthorizersThatCannotAnswer(t *testing.T) {
	all := documented(t)
	good := all[slices.IndexFunc(all, func(s section) bool { return s.code == NoAuthorizer })].instead
	world := read(t, "testdata/world.yaml") + "---\n"
	for _, c := range []struct {
		what, old, new string
		open           bool
		want           string
	}{
		{"one that answers", "", "", false, ""},
		{"a port that is not declared", "name: grpc, ", "", false, ""},
		{"another port", "port: 9191", "port: 9192", false, "has no port 9191"},
		{"another protocol", "name: grpc", "name: http", false, "declared to speak HTTP,"},
		{"one that fails open", "port: 9191", "port: 9192", true, "let pass"},
		{"another provider", "provider: {name: opa}", "provider: {name: other}", false, ""},
	} {
		in := Input{Cluster: objects(t, world+strings.Replace(good, c.old, c.new, 1)), Whole: true, Options: options, Now: time.Unix(1e9, 0)}
		in.Options.Authorizers = append(in.Options.Authorizers[:0:0], in.Options.Authorizers...)
		in.Options.Authorizers[0].FailOpen = c.open
		found, err := Analyze(in)
		if err != nil {
			t.Fatal(err)
		}
		said := ""
		for _, f := range found {
			if f.Code == NoAuthorizer {
				said += f.Message
			}
		}
		if c.want == "" && said != "" || !strings.Contains(said, c.want) {
			t.Errorf("%s: %q, want %q", c.what, said, c.want)
		}
	}
}
