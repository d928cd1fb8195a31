package cli

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// apiServer is one that lists what it has, nothing of all else, and refuses to list some kinds. It returns the path of a kubeconfig.
func apiServer(t *testing.T, has map[string]string, refused ...string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		w.Header().Set("Content-Type", "application/json")
		answer := func(code int, reason string) {
			w.WriteHeader(code)
			fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"message":"%s %s","code":%d}`, reason, reason, kind, code)
		}
		switch {
		case r.URL.Path == "/version":
			fmt.Fprint(w, `{"major":"1","minor":"33"}`)
		case r.URL.Path == "/apis":
			fmt.Fprint(w, `{"kind":"APIGroupList","apiVersion":"v1","groups":[{"name":"apps","versions":[{"groupVersion":"apps/v1","version":"v1"}],"preferredVersion":{"groupVersion":"apps/v1","version":"v1"}}]}`)
		case r.URL.Path == "/api":
			fmt.Fprint(w, `{"kind":"APIVersions","versions":["v1"]}`)
		case r.URL.Path == "/apis/apps/v1":
			fmt.Fprint(w, `{"kind":"APIResourceList","groupVersion":"apps/v1","resources":[{"name":"deployments","namespaced":true,"kind":"Deployment","verbs":["get"]}]}`)
		case slices.Contains(refused, kind):
			answer(http.StatusForbidden, "Forbidden")
		case strings.HasSuffix(r.URL.Path, "/deployments/bulwark-pilot"), kind == "sidecars":
			answer(http.StatusNotFound, "NotFound")
		default:
			fmt.Fprintf(w, `{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[%s]}`, has[kind])
		}
	}))
	t.Cleanup(s.Close)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u}], clusters: [{name: c, cluster: {server: %q}}]}`, s.URL)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Of a cluster, what may not be listed is said and what depends on it is not, or is a guess; files are put on top.
func TestAnalyzeSaysWhatItMayNotSee(t *testing.T) {
	has := map[string]string{
		"namespaces": `{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"shop","labels":{"istio-injection":"enabled"}}}`,
		"pods": `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"shop","labels":{"app":"web","security.istio.io/tlsMode":"istio"}},
			"spec":{"serviceAccountName":"web","containers":[{"name":"a"}]}}`,
		"authorizationpolicies": `{"kind":"AuthorizationPolicy","apiVersion":"security.istio.io/v1","metadata":{"name":"p","namespace":"shop"},
			"spec":{"selector":{"matchLabels":{"app":"wbe"}},"rules":[{"from":[{"source":{"serviceAccounts":["nobody"]}}]}]}}`,
	}
	for name, c := range map[string]struct {
		refused []string
		file    string
		code    int
		want    []string
		not     string
	}{
		"all":           {want: []string{"warning  BW0101  AuthorizationPolicy shop/p", "warning  BW0104  AuthorizationPolicy shop/p"}},
		"no accounts":   {refused: []string{"serviceaccounts"}, want: []string{"ServiceAccounts may not be listed", "warning  BW0101"}, not: "BW0104  "},
		"no makers":     {refused: []string{"deployments"}, want: []string{"Deployments may not be listed", "info     BW0101", "perhaps (a guess)"}, not: "BW0104  "},
		"no pods":       {refused: []string{"pods"}, code: 2, want: []string{"forbidden: listing pods", "--offline looks at files alone"}},
		"no settings":   {refused: []string{"bulwark-pilot"}, want: []string{"trust domain is taken to be cluster.local", "warning  BW0101"}},
		"a file on top": {file: strings.Replace(has["authorizationpolicies"], "wbe", "web", 1), want: []string{"warning  BW0104", "(standard input)"}, not: "BW0101"},
	} {
		args := []string{"analyze", "--kubeconfig", apiServer(t, has, c.refused...)}
		if c.file != "" {
			args = append(args, "-")
		}
		var out, notes bytes.Buffer
		code := Run(t.Context(), args, strings.NewReader(c.file), &out, &notes)
		all := out.String() + notes.String()
		for _, want := range c.want {
			if !strings.Contains(all, want) {
				t.Errorf("%s: %q is not in\n%s", name, want, all)
			}
		}
		if code != c.code || c.not != "" && strings.Contains(all, c.not) {
			t.Errorf("%s: status %d\n%s", name, code, all)
		}
	}
}

// What people write that makes pods is asked of a cluster: who a CronJob's pods would be is told before it has run, and a Job that has ended has none. What may not be listed is said.
func TestAuthzKnowsWhatHasNoPodYet(t *testing.T) {
	job := func(name, status string) string {
		return fmt.Sprintf(`{"kind":"Job","apiVersion":"batch/v1","metadata":{"name":%q,"namespace":"shop"},"spec":{"template":{"metadata":{"labels":{"app":%[1]q}},"spec":{"serviceAccountName":"b","containers":[{"name":"a"}]}}},"status":{%s}}`, name, status)
	}
	has := map[string]string{
		"namespaces": `{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"shop","labels":{"istio-injection":"enabled"}}}`,
		"cronjobs":   `{"kind":"CronJob","apiVersion":"batch/v1","metadata":{"name":"nightly","namespace":"shop"},"spec":{"jobTemplate":{"spec":{"template":{"metadata":{"labels":{"app":"nightly"}},"spec":{"serviceAccountName":"b","containers":[{"name":"a"}]}}}}}}`,
		"jobs":       job("waits", "") + "," + job("ended", `"conditions":[{"type":"Complete","status":"True"}]`) + "," + job("failed", `"conditions":[{"type":"Failed","status":"True"}]`),
	}
	for _, c := range []struct {
		to, want string
		code     int
		refused  []string
	}{
		{"cronjob/nightly", "ALLOWED by policies", 0, nil},
		{"job/waits", "ALLOWED by policies", 0, nil},
		{"job/ended", "there is no", 2, nil},
		{"job/failed", "there is no", 2, nil},
		{"cronjob/nightly", "Jobs may not be listed: their pods go by names of their own", 0, []string{"jobs"}},
		{"cronjob/nightly", "CronJobs may not be listed", 2, []string{"cronjobs"}},
	} {
		var out, notes bytes.Buffer
		code := Run(t.Context(), []string{"authz", "explain", "-n", "shop", "--from", "shop/b", "--to", c.to, "--port", "80", "-X", "GET", "--path", "/", "--kubeconfig", apiServer(t, has, c.refused...)}, strings.NewReader(""), &out, &notes)
		if all := out.String() + notes.String(); code != c.code || !strings.Contains(all, c.want) {
			t.Errorf("%s without %v: status %d\n%s", c.to, c.refused, code, all)
		}
	}
}
