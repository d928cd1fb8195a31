package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	security "istio.io/api/security/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/wire"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// The namespaces of the table: servers and the client of a name, another client (and a server that has the namespace's modes), and who has no proxy.
const (
	rowsNS      = "e2e-rows"
	rowsOther   = "e2e-rows-other"
	rowsOutside = "e2e-rows-outside"
	issuerName  = "http://issuer." + rowsOutside + ".svc.cluster.local:8080"
)

// lane is a server, and what is tried of it, one row after the other.
type lane struct {
	name, namespace string
	rows            []row
}

// row is a row of the semantics: policies, and what comes of questions while they hold.
type row struct {
	name     string
	policies []policy
	asks     []ask
}

// policy is one of a row's. It selects the lane's server, unless its spec says otherwise.
type policy struct {
	kind policyKind
	name string // "root/…" is in the root namespace, "trial/…" is on trial
	spec string // in YAML's flow style
}

type policyKind string

const (
	ap policyKind = "AuthorizationPolicy"
	pa policyKind = "PeerAuthentication"
	ra policyKind = "RequestAuthentication"
)

// ask is a question to the lane's server.
type ask struct {
	who  string // client, other, or stranger, who has no proxy
	port uint32 // of the server's workload
	q    wire.Question
	want string
	by   string // "<policy> rule <n>" that decides in the audit trail, "none" if no ALLOW policy matches; empty: it is not looked for
	says string // is in the answer
	not  string // is not

	claims map[string]any // of the token that stands for TOKEN in the question; FORGED has another signature
	before bool           // the answer is given before policies, or the token is not seen
}

// ports are those of the lanes' Services, by the workload's: all but 8080 have the same number there, so that a rule which names the other's is seen to match nothing.
var ports = map[uint32]uint32{8080: 80, 8081: 8081, 7000: 7000, 9000: 9000, 8443: 8443, 3306: 3306}

const rowsServer = `
apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: NS}
spec:
  selector: {app: NAME}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: any, port: 8081}, {name: grpc, port: 7000}, {name: tcp, port: 9000}, {name: tls, port: 8443}, {name: mysql, port: 3306}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: NS}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: app, image: "docker.io/bulwark/sample:TAG", imagePullPolicy: IfNotPresent, args: [anything, --port, "8080,8081,7000,9000,8443", --greeting, "3306"], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}]
---
`

const rowsClient = `
{apiVersion: v1, kind: ServiceAccount, metadata: {name: NAME, namespace: NS}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: NS}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      serviceAccountName: NAME
      terminationGracePeriodSeconds: 1
      containers: [{name: app, image: "docker.io/bulwark/sample:TAG", imagePullPolicy: IfNotPresent, args: [wait]}]
---
`

// TestSemantics tries the rows of the semantics of policies with real pods, in every protocol: each of them applied, waited for until the server's proxy has it, and asked. Verdicts
// are those that the table names, and those that the evaluator finds; who decided a request, the audit trail has.
func TestSemantics(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	lanes := semanticLanes()
	w, err := newRowsWorld(ctx, t, lanes)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range refusedRows() {
		if err := mustBeRefused(ctx, w.scene, w.manifest(lanes[0], c.policy), c.says); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	began := time.Now()
	var all sync.WaitGroup
	for _, l := range lanes { // they wait for proxies more than they work
		all.Go(func() { w.try(ctx, t, l) })
	}
	all.Wait()
	t.Logf("%d questions in %s", w.asked.Load(), time.Since(began).Round(time.Second))
}

// rowsWorld is where the rows are tried.
type rowsWorld struct {
	scene   *claims.Scene
	issuer  *claims.IdentityProvider
	keys    string                // of the issuer
	address map[string]netip.Addr // of pods, by app
	asked   atomic.Int64
}

func newRowsWorld(ctx context.Context, t *testing.T, lanes []lane) (*rowsWorld, error) {
	cleanUp(t, rowsNS, rowsOther, rowsOutside)
	in := func(manifest, ns, name string) string {
		return strings.NewReplacer("NAME", name, "NS", ns, "TAG", *tag).Replace(manifest)
	}
	manifest := fmt.Sprintf(`
{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {istio-injection: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {istio-injection: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: %s}}
---
`, rowsNS, rowsOther, rowsOutside) + in(rowsClient, rowsNS, "client") + in(rowsClient, rowsOther, "other") + in(rowsClient, rowsOutside, "stranger")
	for _, l := range lanes {
		manifest += in(rowsServer, l.namespace, l.name)
	}
	w := &rowsWorld{scene: &claims.Scene{Lab: cluster, Namespace: rowsNS, Outside: rowsOutside}, address: map[string]netip.Addr{}}
	if err := cluster.Apply(ctx, manifest); err != nil {
		return nil, err
	}
	var err error
	if w.issuer, err = w.scene.IdentityProvider(ctx); err != nil {
		return nil, err
	}
	t.Cleanup(w.issuer.Close)
	if w.keys, err = w.issuer.Post(ctx, "/keys", ""); err != nil {
		return nil, err
	}
	for _, ns := range []string{rowsNS, rowsOther, rowsOutside} {
		if err := reachable(ctx, ns, 3*time.Minute); err != nil {
			return nil, err
		}
		pods, err := cluster.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		for _, p := range pods.Items {
			if w.address[p.Labels["app"]], err = netip.ParseAddr(p.Status.PodIP); err != nil {
				return nil, fmt.Errorf("the address of %s: %w", p.Name, err)
			}
		}
	}
	return w, nil
}

// local puts a lane's names and addresses into a text.
func (w *rowsWorld) local(l lane, text string) string {
	return strings.NewReplacer("LANE", l.name, "CLIENT-NS", rowsNS, "OTHER-NS", rowsOther, "CLIENT-IP", w.address["client"].String(), "SERVER-IP", w.address[l.name].String(), "ISSUER", issuerName, "JWKS", w.keys).Replace(text)
}

// place is where a policy is, and whether it is on trial.
func (p policy) place(l lane) (namespace, name string, trial bool) {
	namespace, name = l.namespace, l.name+"-"+p.name
	if rest, ok := strings.CutPrefix(p.name, "root/"); ok {
		namespace, name = mesh.Namespace, rowsNS+"-"+l.name+"-"+rest
	}
	if rest, ok := strings.CutPrefix(p.name, "trial/"); ok {
		name, trial = l.name+"-"+rest, true
	}
	return namespace, name, trial
}

// object is a policy as its author would have it.
func (w *rowsWorld) object(l lane, p policy) (namespace, name string, spec map[string]any) {
	if err := yaml.Unmarshal([]byte(w.local(l, p.spec)), &spec); err != nil {
		panic(fmt.Sprintf("%s: %v", p.spec, err)) // a mistake of the table
	}
	if spec == nil {
		spec = map[string]any{}
	}
	_, own := spec["selector"]
	if _, targets := spec["targetRefs"]; !own && !targets {
		spec["selector"] = map[string]any{"matchLabels": map[string]any{"app": l.name}}
	}
	if spec["selector"] == "none" {
		delete(spec, "selector")
	}
	namespace, name, _ = p.place(l)
	return namespace, name, spec
}

func (w *rowsWorld) manifest(l lane, p policy) string {
	namespace, name, spec := w.object(l, p)
	metadata := map[string]any{"name": name, "namespace": namespace}
	if _, _, trial := p.place(l); trial {
		metadata["annotations"] = map[string]any{"istio.io/dry-run": "true"}
	}
	text, err := yaml.Marshal(map[string]any{"apiVersion": "security.istio.io/v1", "kind": string(p.kind), "metadata": metadata, "spec": spec})
	if err != nil {
		panic(err) // what was read can be written
	}
	return string(text)
}

// try tries the rows of a lane.
func (w *rowsWorld) try(ctx context.Context, t *testing.T, l lane) {
	began := time.Now()
	decided := map[string]string{} // who has to have decided, by the path of the request
	for i, r := range l.rows {
		if err := w.apply(ctx, l, i, r); err != nil {
			t.Errorf("%s, %s: %v", l.name, r.name, err)
			continue
		}
		if err := w.askAll(ctx, l, r, decided); err != nil {
			t.Errorf("%s, %s: %v", l.name, r.name, err)
		}
		for _, p := range r.policies {
			if err := cluster.Delete(ctx, w.manifest(l, p)); err != nil {
				t.Errorf("%s, %s: %v", l.name, r.name, err)
			}
		}
	}
	if err := lab.PollFor(ctx, 20*time.Second, func(ctx context.Context) error { return w.recorded(ctx, l, began, decided) }); err != nil {
		t.Errorf("%s, the audit trail: %v", l.name, err)
	}
}

// apply applies a row's policies, and one more at the end that has the requests at port 8080 audited and decides nothing. When that is enforced, so is all that came before.
func (w *rowsWorld) apply(ctx context.Context, l lane, turn int, r row) error {
	var waited []string
	for i, p := range r.policies {
		if p.kind == pa && i > 0 && r.policies[i-1].kind == pa { // which is the older is told in seconds
			second := time.Now().Unix()
			if err := lab.PollFor(ctx, 5*time.Second, func(context.Context) error {
				if time.Now().Unix() == second {
					return errors.New("the next second has not begun")
				}
				return nil
			}); err != nil {
				return err
			}
		}
		if err := cluster.Apply(ctx, w.manifest(l, p)); err != nil {
			return err
		}
		if p.kind == ra { // another watch than that of AuthorizationPolicies
			_, name, _ := p.place(l)
			waited = append(waited, "ra/"+name)
		}
	}
	last := policy{ap, "turn", fmt.Sprintf(`{action: AUDIT, rules: [{to: [{operation: {ports: ["8080"]}}]}, {from: [{source: {namespaces: [turn-%d]}}]}]}`, turn)}
	if err := cluster.Apply(ctx, w.manifest(l, last)); err != nil {
		return err
	}
	args := append([]string{"wait", "-n", l.namespace, "--timeout", "30s", "ap/" + l.name + "-turn"}, waited...)
	_, err := cluster.Meshctl(ctx, args...)
	return err
}

// askAll asks a row's questions until all are answered as they have to be: the server's proxy has the policies, but its clients' proxies may yet hear of it.
func (w *rowsWorld) askAll(ctx context.Context, l lane, r row, decided map[string]string) error {
	questions := map[string][]wire.Question{}
	asks := map[string][]ask{}
	for _, a := range r.asks {
		q, err := w.question(ctx, l, a)
		if err != nil {
			return err
		}
		if a.by != "" {
			decided[q.Path] = a.by
		}
		questions[a.who], asks[a.who] = append(questions[a.who], q), append(asks[a.who], a)
		if err := w.evaluated(l, r, a, q); err != nil {
			return err
		}
	}
	for _, who := range slices.Sorted(maps.Keys(questions)) {
		list, err := json.Marshal(questions[who])
		if err != nil {
			return err
		}
		ns := map[string]string{"client": rowsNS, "other": rowsOther, "stranger": rowsOutside}[who]
		if err := lab.PollFor(ctx, 20*time.Second, func(ctx context.Context) error {
			answers, err := lab.ExecJSON[[]wire.Answer](ctx, cluster, ns, who, "app", "sample", "questions", string(list))
			if err != nil {
				return err
			}
			var wrong []error
			for i, got := range answers {
				a := asks[who][i]
				if got.Got != a.want || !strings.Contains(got.Body, a.says) || a.not != "" && strings.Contains(got.Body, a.not) {
					wrong = append(wrong, fmt.Errorf("%s asks %+v at %d and gets %+v, want %s %s", who, questions[who][i], a.port, got, a.want, a.says))
				}
			}
			return errors.Join(wrong...)
		}); err != nil {
			return err
		}
		w.asked.Add(int64(len(questions[who])))
	}
	return nil
}

// question is what is asked, of the lane's server by the address of its Service. Its number in the query is how it is found in the audit trail.
func (w *rowsWorld) question(ctx context.Context, l lane, a ask) (wire.Question, error) {
	q := a.q
	q.Address = fmt.Sprintf("%s.%s.svc.cluster.local:%d", l.name, l.namespace, ports[a.port])
	token, forged := "", ""
	if a.claims != nil {
		var err error
		if token, err = w.issuer.Token(ctx, a.claims); err != nil {
			return q, err
		}
		parts := strings.Split(token, ".")
		forged = parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2]))
	}
	fill := strings.NewReplacer("TOKEN", token, "FORGED", forged).Replace
	q.Path, q.Headers = fill(cmp.Or(q.Path, "/")), map[string]string{}
	for name, value := range a.q.Headers {
		q.Headers[name] = fill(value)
	}
	if a.by != "" {
		sign := "?"
		if strings.Contains(q.Path, "?") {
			sign = "&"
		}
		q.Path += fmt.Sprintf("%sask=%d", sign, asksMade.Add(1))
	}
	return q, nil
}

var asksMade atomic.Int64

// denials are the answers of what is denied; 401 and Unauthenticated are of tokens, before policies.
var denials = []string{"403", "PermissionDenied", "Unavailable", wire.Nothing, wire.CutOff}

// evaluated compares the table's verdict with the evaluator's.
func (w *rowsWorld) evaluated(l lane, r row, a ask, q wire.Question) error {
	if a.before || a.want == "401" || a.want == "Unauthenticated" {
		return nil
	}
	var policies []authz.Policy
	var modes []authz.PeerPolicy
	options := authz.Options{TrustDomain: mesh.DefaultTrustDomain, TrustDomainAliases: []string{lab.FormerDomain}, RootNamespace: mesh.Namespace}
	for i, p := range r.policies {
		namespace, name, spec := w.object(l, p)
		_, _, trial := p.place(l)
		text, err := json.Marshal(spec)
		if err != nil {
			return err
		}
		meta := authz.Meta{Namespace: namespace, Name: name, DryRun: trial, Created: time.Unix(int64(i), 0)}
		switch p.kind {
		case ap:
			read := &security.AuthorizationPolicy{}
			if err := read.UnmarshalJSON(text); err != nil {
				return err
			}
			if read.GetAction() == security.AuthorizationPolicy_CUSTOM {
				return nil // what an authorizer says, the evaluator does not know
			}
			policy, problems := authz.FromAuthorizationPolicy(meta, read, options)
			if len(problems) > 0 {
				return fmt.Errorf("policy %s: %v", name, problems)
			}
			policies = append(policies, policy)
		case pa:
			read := &security.PeerAuthentication{}
			if err := read.UnmarshalJSON(text); err != nil {
				return err
			}
			policy, problems := authz.FromPeerAuthentication(meta, read, options)
			if len(problems) > 0 {
				return fmt.Errorf("policy %s: %v", name, problems)
			}
			modes = append(modes, policy)
		}
	}
	mode := authz.ComposePeer(modes, mesh.Namespace, l.namespace, map[string]string{"app": l.name}).Mode(a.port)
	req := authz.Request{SourceIP: w.address[a.who], DestinationIP: w.address[l.name], DestinationPort: a.port, SNI: q.SNI, Host: cmp.Or(q.Host, q.Address), Path: q.Path, Method: cmp.Or(q.Method, "GET"), Headers: map[string][]string{}}
	switch q.Kind {
	case wire.TCP, wire.TLS, wire.Greeted:
	case wire.GRPCUnary, wire.GRPCStream:
		req.HTTP, req.Method, req.Path = true, "POST", "/grpc.health.v1.Health/"+strings.TrimPrefix(string(q.Kind), "gRPC ")
	default:
		req.HTTP = true
	}
	for name, value := range q.Headers {
		req.Headers[strings.ToLower(name)] = []string{value}
	}
	if a.claims != nil {
		text, err := json.Marshal(a.claims)
		if err == nil {
			err = json.Unmarshal(text, &req.Claims) // as a token is decoded
		}
		if err != nil {
			return err
		}
		if req.Claims["iss"] == nil {
			req.Claims["iss"] = issuerName
		}
		for _, name := range []string{"scope", "groups"} { // that the table's RequestAuthentication takes for lists
			text, _ := a.claims[name].(string)
			list := []any{}
			for _, word := range strings.Fields(text) {
				list = append(list, word)
			}
			req.Claims[name] = list
		}
	}
	if ns := map[string]string{"client": rowsNS, "other": rowsOther}[a.who]; ns != "" && mode != authz.Disable {
		req.Source, req.SNI = spiffe.ID{TrustDomain: mesh.DefaultTrustDomain, Namespace: ns, ServiceAccount: a.who}, ""
	}
	allowed := authz.Evaluate(policies, req).Allowed && (mode != authz.Strict || req.Source != spiffe.ID{})
	if allowed == slices.Contains(denials, a.want) {
		return fmt.Errorf("the table says that %s gets %s for %+v at %d, and the evaluator that it is allowed: %v (%+v)", a.who, a.want, q, a.port, allowed, authz.Evaluate(policies, req))
	}
	return nil
}

// recorded compares the audit trail with who has to have decided.
func (w *rowsWorld) recorded(ctx context.Context, l lane, since time.Time, decided map[string]string) error {
	events, err := (&claims.Scene{Lab: cluster, Namespace: l.namespace}).Events(ctx, since)
	if err != nil {
		return err
	}
	by := map[string]string{}
	for _, e := range events {
		if e.Reporter == "REPORTER_DESTINATION" {
			by[e.Path] = cmp.Or(e.Policy, "none")
		}
	}
	var wrong []error
	for path, want := range decided {
		if got := strings.TrimPrefix(by[path], l.namespace+"/"+l.name+"-"); got != want {
			wrong = append(wrong, fmt.Errorf("%s has been decided by %q, want %q", path, got, want))
		}
	}
	return errors.Join(wrong...)
}
