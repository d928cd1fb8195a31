package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const finance = "../../../manifests/samples/finance.yaml"

// meshctl runs a command line, in which @ stands for the sample's file.
func meshctl(t *testing.T, line string) (code int, out, notes string) {
	t.Helper()
	var o, n bytes.Buffer
	code = Run(t.Context(), strings.Fields(strings.ReplaceAll(line, "@", finance)), strings.NewReader(""), &o, &n)
	return code, o.String(), n.String()
}

// proposed is the sample with a text in another's place.
func proposed(t *testing.T, old, with string) string {
	t.Helper()
	text, err := os.ReadFile(finance)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), old) {
		t.Fatalf("the sample has no %q", old)
	}
	name := filepath.Join(t.TempDir(), "proposed.yaml")
	if err := os.WriteFile(name, []byte(strings.Replace(string(text), old, with, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestAuthzAnswersByStatusAndInWords(t *testing.T) {
	trail := filepath.Join(t.TempDir(), "trail.jsonl")
	record := `{"index":"7","event":{"time":"` + time.Now().Add(-time.Minute).UTC().Format(time.RFC3339) + `","observer":{"namespace":"finance","pod":"payroll-1","serviceAccount":"payroll"},"reporter":"REPORTER_DESTINATION",` +
		`"sourceIdentity":"spiffe://cluster.local/ns/finance/sa/account-auditor","sourceAddress":"10.0.0.9:4000","destinationAddress":"10.0.0.8:8080","method":"GET","path":"/accounts/1","authority":"payroll","verdict":"VERDICT_ALLOWED"}}` + "\n"
	if err := os.WriteFile(trail, []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	post := proposed(t, "methods: [GET]", "methods: [POST]")
	for _, c := range []struct {
		line string
		code int
		out  string // in what it prints
	}{
		{"explain --offline -f @ -n finance --from account-auditor --to deploy/payroll --port 8080 -X GET --path /accounts/1", 0, "ALLOWED by finance/payroll-readers rule 0"},
		{"explain --offline -f @ -n finance --from web --to deploy/payroll --port 8080 -X GET --path /accounts/1", 1, "kind: AuthorizationPolicy"},
		{"explain --offline -f @ -n finance --from finance/web --to svc/payroll --port 80 --path /accounts/1", 1, "rules[0].from[0].source.principals"},
		{"explain --offline -f @ -n finance --plaintext --to payroll", 1, "mutual TLS alone"},
		{"explain --offline -f @ -n finance --from web --to deploy/none", 2, "there are deploy/account-auditor"},
		{"explain --offline -f @ -n finance --from web", 2, "describe a request"},
		{"explain --offline -f @ -n finance --from web --to payroll --header x", 2, "write NAME=VALUE"},
		{"explain --offline -f @ -n finance --from web --to payroll --claim a.=b", 2, "write NAME=VALUE"},
		{"explain --offline -f @ -n finance --from web --to payroll --claim a=b --claim a.c=d", 2, "is a value and has others within it"},
		{"explain --offline -f @ -n finance --from web --to payroll --source-ip x", 2, "is no IP address"},
		{"explain --offline -f @ --event 7", 2, "--offline"},
		{"explain --offline --from web --to payroll", 2, "name them with -f"},
		{"explain --frob", 2, "unknown flag"},
		{"explain extra", 2, "unknown command"},
		{"who-can --offline -f @ -n finance svc/payroll --port 80 -X GET --path /accounts/1", 0, "cluster.local/ns/finance/sa/account-auditor"},
		{"who-can --offline -f @ -n finance svc/payroll --port 80 -X PUT --path /accounts/1", 1, "Nobody can."},
		{"who-can --offline -f @", 2, "accepts 1 arg"},
		{"what-can --offline -f @ finance/account-auditor -n finance", 0, "/accounts/*"},
		{"what-can --offline -f @ --plaintext -A", 1, "Nothing can be reached."},
		{"what-can --offline -f @", 2, "name an identity"},
		{"diff --against @ -f @", 0, "Nothing changes for any request to the 3 workloads."},
		{"diff --against @ -f " + post, 1, "now denied"},
		{"diff --against @", 2, "name the proposed files"},
		{"diff --against @ -f none.yaml", 2, "none.yaml"},
		{"replay --offline -f @ -A --records " + trail, 0, "Of 1 decisions, 0 would change, and 0 depend"},
		{"replay --offline -f " + post + " -A --records " + trail, 1, "/accounts/{*}"},
		{"replay --offline -f @ -A", 2, "--records"},
		{"replay --offline -f @ -A --since -1h --records " + trail, 2, "in the future"},
		{"suggest --offline -f @ -n finance --workload payroll --records " + trail, 0, "- /accounts/{*}"},
		{"suggest --offline -f @ -n finance --workload web --records " + trail, 2, "nothing was seen"},
		{"suggest --offline -f @ -n finance --records " + trail, 2, "name the workload"},
		{"frob", 1, "there is no command"},
	} {
		code, out, notes := meshctl(t, "authz "+c.line)
		if code != c.code || !strings.Contains(out+notes, c.out) {
			t.Errorf("meshctl authz %s: status %d, want %d with %q\n%s%s", c.line, code, c.code, c.out, out, notes)
		}
		if c.code == 2 && strings.HasPrefix(notes, "meshctl: ") && strings.Count(notes, "\n") != 1 {
			t.Errorf("meshctl authz %s says more than a line: %s", c.line, notes)
		}
	}
}

func TestAuthzSpeaksJSONAndYAML(t *testing.T) {
	for _, line := range []string{
		"explain --offline -f @ -n finance --from web --to deploy/payroll --port 8080", "who-can --offline -f @ -n finance payroll", "what-can --offline -f @ finance/web -A", "diff --against @ -f @",
	} {
		_, out, notes := meshctl(t, "authz "+line+" -o json")
		var v map[string]any
		if err := json.Unmarshal([]byte(out), &v); err != nil || len(v) == 0 {
			t.Errorf("%s: %v\n%s%s", line, err, out, notes)
		}
		if _, out, _ := meshctl(t, "authz "+line+" -o yaml"); !strings.Contains(out, ":") || strings.HasPrefix(out, "{") {
			t.Errorf("%s: %s", line, out)
		}
		if code, _, notes := meshctl(t, "authz "+line+" -o xml"); code != 2 || !strings.Contains(notes, "use table, json or yaml") {
			t.Errorf("%s: %d, %s", line, code, notes)
		}
	}
}

func TestAuthzCompletesNames(t *testing.T) {
	for line, want := range map[string]string{
		"authz explain --offline -f @ -n finance --to":       "deploy/payroll",
		"authz explain --offline -f @ -n finance --from":     "finance/account-auditor",
		"authz who-can --offline -f @ -n finance":            "svc/payroll",
		"authz what-can --offline -f @":                      "finance/web",
		"authz suggest --offline -f @ -n finance --workload": "deploy/web",
	} {
		var out, notes bytes.Buffer
		args := append([]string{"__complete"}, append(strings.Fields(strings.ReplaceAll(line, "@", finance)), "")...)
		if Run(t.Context(), args, strings.NewReader(""), &out, &notes); !strings.Contains(out.String(), want+"\n") {
			t.Errorf("%s: %q, %q", line, out.String(), notes.String())
		}
	}
}

// Values of policies and paths are chosen by others: a line stays one, and no longer than people read.
func TestWhatOthersChoseIsBoundedInTables(t *testing.T) {
	file := proposed(t, "paths: [/accounts/*]", "paths: ["+strings.Repeat("/very-long", 190)+", \"/a\u202eb\"]")
	for _, line := range []string{
		"explain --offline -f " + file + " -n finance --from web --to payroll --port 8080 --path /" + strings.Repeat("x", 3000),
		"explain --offline -f " + file + " -n finance --from web --to payroll --port 8080 --header X-A=" + strings.Repeat("y", 3000),
		"who-can --offline -f " + file + " -n finance payroll", "diff --against @ -f " + file,
	} {
		_, out, notes := meshctl(t, "authz "+line)
		table, _, _ := strings.Cut(out, "# The smallest") // YAML to apply is whole
		for l := range strings.Lines(table + notes) {
			if len([]rune(l)) > 1200 || strings.Contains(l, "\u202e") {
				t.Errorf("%.60s…: a line of %d: %.300s", line, len(l), l)
			}
		}
	}
}

func TestExplanationOfFilesIsQuick(t *testing.T) {
	best := time.Hour
	for range 5 { // other tests may take the machine's time
		start := time.Now()
		if code, out, notes := meshctl(t, "authz explain --offline -f @ -n finance --from web --to deploy/payroll --port 8080 --path /accounts/1"); code != 1 {
			t.Fatal(code, out, notes)
		}
		best = min(best, time.Since(start))
	}
	if best > 200*time.Millisecond {
		t.Errorf("it took %s at best", best)
	}
}
