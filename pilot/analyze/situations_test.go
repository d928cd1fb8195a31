package analyze

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// situation is what is looked at, and which codes are to be said, sorted; infos are left out but where they are asked for.
type situation struct {
	name, cluster, files string
	in                   Input
	infos                bool
	want                 string
}

const policyOf = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: %s}
spec: {%s}`

const deploymentOf = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: %s, namespace: %s}
spec: {template: {metadata: {labels: {app: %s}}, spec: {containers: [{name: a, ports: [{containerPort: 8080}]}]}}}`

const podOf = `
apiVersion: v1
kind: Pod
metadata:
  name: %[1]s-7f-x
  namespace: finance
  labels: {app: %[2]s, pod-template-hash: 7f%[3]s}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: %[1]s-7f, uid: u}]
spec: {serviceAccountName: default, containers: [{name: a}]}`

func join(texts ...string) string { return strings.Join(texts, "\n---") }

func namespaceOf(name string) string {
	return "\napiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + ", labels: {istio-injection: enabled}}"
}

// What users of such tools ran into: objects that are elsewhere, pods that are not there yet, Lists and kinds that mean nothing here.
func TestSituations(t *testing.T) {
	whole := Input{Whole: true, Accounts: true}
	selecting := fmt.Sprintf(policyOf, "finance", "selector: {matchLabels: {app: payroll}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]")
	for _, s := range []situation{
		{name: "a folder of policies alone: the rest is elsewhere", files: selecting, infos: true},
		{name: "a folder that has other workloads: a guess", files: join(selecting, fmt.Sprintf(deploymentOf, "x", "finance", "x")), infos: true, want: "BW0101"},
		{name: "workloads of another namespace say nothing", files: join(selecting, fmt.Sprintf(deploymentOf, "x", "shop", "x")), infos: true},
		{name: "the folder is the whole", files: join(selecting, fmt.Sprintf(deploymentOf, "x", "finance", "x")), in: whole, want: "BW0101 BW0103"},
		{name: "a Deployment of no replicas", cluster: join(namespaceOf("finance"), namespaceOf("shop"), fmt.Sprintf(deploymentOf, "payroll", "finance", "payroll")), files: selecting, in: Input{Whole: true}},
		{name: "service accounts that may not be listed", cluster: join(namespaceOf("finance"), namespaceOf("shop"), fmt.Sprintf(deploymentOf, "payroll", "finance", "payroll")), files: selecting, in: Input{Whole: true}},
		{name: "service accounts that may", cluster: join(namespaceOf("finance"), namespaceOf("shop"), fmt.Sprintf(deploymentOf, "payroll", "finance", "payroll")), files: selecting, in: whole, want: "BW0104"},
		{name: "a pod of a Deployment that a file gives other labels",
			cluster: join(namespaceOf("finance"), namespaceOf("shop"), fmt.Sprintf(deploymentOf, "d", "finance", "payroll"), fmt.Sprintf(podOf, "d", "payroll", ", security.istio.io/tlsMode: istio")),
			files:   join(selecting, fmt.Sprintf(deploymentOf, "d", "finance", "other")), in: Input{Whole: true}, want: "BW0101"},
		{name: "a pod that is still without a proxy, though its template would get one",
			cluster: join(namespaceOf("finance"), namespaceOf("shop"), fmt.Sprintf(deploymentOf, "d", "finance", "payroll"), fmt.Sprintf(podOf, "d", "payroll", "")), files: selecting, in: Input{Whole: true}, want: "BW0102"},
		{name: "a policy of the root namespace for workloads of others", cluster: join(namespaceOf("finance"), fmt.Sprintf(deploymentOf, "d", "finance", "payroll")),
			files: fmt.Sprintf(policyOf, "bulwark-system", "selector: {matchLabels: {app: payroll}}"), in: Input{Whole: true}},
		{name: "kinds that mean nothing here", files: `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: finance}
spec: {hosts: [x]}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: v, namespace: finance}
spec: {template: {}}`, in: whole},
		{name: "an older API version", files: strings.Replace(fmt.Sprintf(policyOf, "finance", "selector: {matchLabels: {app: payroll}}"), "io/v1", "io/v1beta1", 1),
			cluster: join(namespaceOf("finance"), fmt.Sprintf(deploymentOf, "d", "finance", "x")), in: Input{Whole: true}, want: "BW0101"},
		{name: "a policy that cannot be decoded", files: fmt.Sprintf(policyOf, "finance", "selector: {matchLabels: {app: payroll}}, rules: [{frm: []}]"), want: "BW0120"},
		{name: "a policy that is tried out", files: fmt.Sprintf(strings.Replace(policyOf, "name: p", `name: p, annotations: {istio.io/dry-run: "true"}`, 1), "finance", "action: DENY, rules: [{}]") + "\n---" +
			strings.Replace(fmt.Sprintf(policyOf, "finance", "rules: [{from: [{source: {namespaces: [a]}}]}]"), "name: p", "name: q", 1)},
		{name: "allow nothing, and some", files: join(fmt.Sprintf(policyOf, "finance", ""), strings.Replace(fmt.Sprintf(policyOf, "finance", "rules: [{from: [{source: {namespaces: [a]}}]}]"), "name: p", "name: q", 1)), infos: true},
		{name: "STRICT that is in force already", cluster: join(namespaceOf("finance"), fmt.Sprintf(deploymentOf, "d", "finance", "d"), peer("finance", "default", "mtls: {mode: STRICT}")),
			files: peer("finance", "default", "mtls: {mode: STRICT}"), in: Input{Whole: true, Plaintext: []Plaintext{{"finance", "default", 9}}}},
		{name: "a port that becomes STRICT, of which nothing was counted", cluster: join(namespaceOf("finance"), fmt.Sprintf(deploymentOf, "d", "finance", "d"), strings.Replace(fmt.Sprintf(deploymentOf, "old", "finance", "old"), "{app: old}",
			`{app: old, sidecar.istio.io/inject: "false"}`, 1)), infos: true,
			files: peer("finance", "one", "selector: {matchLabels: {app: d}}, portLevelMtls: {8080: {mode: STRICT}}"), in: Input{Whole: true}, want: "BW0116"},
		{name: "the port of a Service in a PeerAuthentication", cluster: join(namespaceOf("finance"), fmt.Sprintf(deploymentOf, "d", "finance", "d"), `
apiVersion: v1
kind: Service
metadata: {name: d, namespace: finance}
spec: {selector: {app: d}, ports: [{name: http, port: 80, targetPort: 8080}]}`),
			files: peer("finance", "one", "selector: {matchLabels: {app: d}}, portLevelMtls: {80: {mode: PERMISSIVE}}"), in: Input{Whole: true}, want: "BW0111"},
		{name: "a new PeerAuthentication beside an older one, though first by its name", cluster: join(namespaceOf("finance"), fmt.Sprintf(deploymentOf, "d", "finance", "d"),
			strings.Replace(peer("finance", "default", "mtls: {mode: STRICT}"), "{name", `{creationTimestamp: "2001-01-01T00:00:00Z", name`, 1)),
			files: peer("finance", "a", "mtls: {mode: STRICT}"), in: Input{Whole: true}, want: "BW0117"},
	} {
		in := s.in
		if s.cluster != "" {
			in.Cluster = objects(t, s.cluster)
		}
		if s.files != "" {
			in.Files = objects(t, s.files)
		}
		found := find(t, in)
		var got []string
		for _, f := range found {
			if f.Severity != Info || s.infos && f.Code != PlaintextIdentity && f.Code != Advice {
				got = append(got, f.Code)
			}
		}
		slices.Sort(got)
		if text := strings.Join(slices.Compact(got), " "); text != s.want {
			t.Errorf("%s: %q, want %q\n%s", s.name, text, s.want, show(found))
		}
	}
}

func peer(namespace, name, spec string) string {
	return fmt.Sprintf("\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: %s, namespace: %s}\nspec: {%s}", name, namespace, spec)
}

// What becomes STRICT is said of the policy and the field that make it so, and not of one that is STRICT for other ports.
func TestWhatBecomesStrictIsSaidOfWhatMakesItSo(t *testing.T) {
	in := Input{Whole: true, Plaintext: []Plaintext{{"finance", "default", 9}}, Cluster: objects(t, join(namespaceOf("finance"), fmt.Sprintf(deploymentOf, "d", "finance", "d")))}
	for files, want := range map[string]string{
		peer("finance", "all", "mtls: {mode: STRICT}"): "finance/all spec.mtls.mode",
		join(peer("finance", "all", "mtls: {mode: PERMISSIVE}"), peer("finance", "one", "selector: {matchLabels: {app: d}}, portLevelMtls: {8080: {mode: STRICT}}")):  "finance/one spec.portLevelMtls[8080].mode",
		join(peer("finance", "all", "mtls: {mode: STRICT}"), peer("finance", "one", "selector: {matchLabels: {app: d}}, portLevelMtls: {8080: {mode: STRICT}}")):      "finance/all spec.mtls.mode, finance/one spec.portLevelMtls[8080].mode",
		join(peer("bulwark-system", "mesh", "mtls: {mode: STRICT}"), peer("finance", "one", "selector: {matchLabels: {app: d}}, portLevelMtls: {9: {mode: STRICT}}")): "bulwark-system/mesh spec.mtls.mode, finance/one spec.portLevelMtls[9].mode",
	} {
		in.Files = objects(t, files)
		var got []string
		for _, f := range find(t, in) {
			if f.Code == StrictBreaks {
				got = append(got, f.Object.Namespace+"/"+f.Object.Name+" "+f.Field)
			}
		}
		slices.Sort(got)
		if said := strings.Join(got, ", "); said != want {
			t.Errorf("%s\nis said of %q, want %q", files, said, want)
		}
	}
}

// The order in which objects come has no say.
func TestTheOrderIsAlwaysTheSame(t *testing.T) {
	world := objects(t, read(t, "testdata/world.yaml"))
	var examples string
	for i, s := range documented(t) {
		// Names that do not replace each other.
		examples += "\n---\n" + strings.ReplaceAll(s.example, "metadata: {name: ", fmt.Sprintf("metadata: {name: n%d-", i))
	}
	files := objects(t, examples[len("\n---\n"):])
	in := Input{Cluster: world, Files: files, Whole: true, Accounts: true, Plaintext: counted}
	want := show(find(t, in))
	if strings.Count(want, "\n") < 30 {
		t.Errorf("the test does not test much:\n%s", want)
	}
	for range 5 {
		rand.Shuffle(len(world), func(i, j int) { world[i], world[j] = world[j], world[i] })
		rand.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
		if got := show(find(t, in)); got != want {
			t.Fatalf("it was\n%s\nand is\n%s", want, got)
		}
	}
}

// generated is a mesh of services with policies of all sorts.
func generated(tb testing.TB, services, policies int) []byte {
	tb.Helper()
	var sb strings.Builder
	r := rand.New(rand.NewPCG(7, 7))
	ns := func(i int) string { return fmt.Sprintf("ns-%d", i%50) }
	for i := range 50 {
		sb.WriteString(namespaceOf(ns(i)) + "\n---")
	}
	for i := range services {
		fmt.Fprintf(&sb, "\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: s%[1]d, namespace: %[2]s}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s%[1]d, namespace: %[2]s}\n"+
			"spec: {selector: {app: s%[1]d}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-x, port: 9000}]}\n---", i, ns(i))
		for j := range 2 {
			fmt.Fprintf(&sb, "\napiVersion: v1\nkind: Pod\nmetadata: {name: s%[1]d-%[3]d, namespace: %[2]s, labels: {app: s%[1]d, pod: p%[3]d, security.istio.io/tlsMode: istio}}\n"+
				"spec: {serviceAccountName: s%[1]d, containers: [{name: a, ports: [{containerPort: 8080}, {containerPort: 9000}]}]}\n---", i, ns(i), j)
		}
	}
	for i := range policies {
		at, action := r.IntN(services), []string{"ALLOW", "ALLOW", "ALLOW", "DENY", "AUDIT"}[r.IntN(5)]
		namespace, selector := ns(at), fmt.Sprintf("selector: {matchLabels: {app: s%d}}, ", at)
		switch r.IntN(20) {
		case 0:
			namespace, selector = "bulwark-system", ""
		case 1, 2:
			selector = ""
		}
		fmt.Fprintf(&sb, "\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p%d, namespace: %s}\nspec: {%saction: %s, rules: [", i, namespace, selector, action)
		for j := range 1 + r.IntN(6) {
			from := r.IntN(services)
			fmt.Fprintf(&sb, "{from: [{source: {principals: [\"cluster.local/ns/%s/sa/s%d\", \"cluster.local/ns/%s/sa/s*\"]}}], to: [{operation: {methods: [GET, \"P*\"], paths: [\"/a%d/*\", \"/b/{*}/c%d\"], notPaths: [\"/a%d/x/*\"]}}]},",
				ns(from), from, ns(r.IntN(50)), r.IntN(3), j, r.IntN(3))
		}
		sb.WriteString("]}\n---")
	}
	return []byte(strings.TrimSuffix(sb.String(), "\n---"))
}

// A thousand services and five hundred policies take no longer than anybody waits. What is measured is the processor's time, so that other work does not count.
func TestALargeMeshIsLookedAtInSeconds(t *testing.T) {
	world := objects(t, string(generated(t, 1000, 500)))
	start := processorTime(t)
	found := find(t, Input{Cluster: world, Whole: true, Accounts: true})
	if took := processorTime(t) - start; took > slower*5*time.Second || len(found) < 100 {
		t.Errorf("%d findings in %s, want them in 5 s", len(found), took)
	} else {
		t.Logf("%d findings in %s", len(found), took)
	}
}

func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func BenchmarkALargeMesh(b *testing.B) {
	world := objects(b, string(generated(b, 1000, 500)))
	for b.Loop() {
		find(b, Input{Cluster: world, Whole: true, Accounts: true})
	}
}
