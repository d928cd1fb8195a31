package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/tools/bench/report"
)

const identityNamespace = "bulwark-bench-identity"

type identityResult struct {
	Accounts       int           `json:"accounts"`
	Secrets        time.Duration `json:"secretsNs"` // until each account has its Secret
	SecretsCPU     time.Duration `json:"secretsCpuNs"`
	CitadelPeak    float64       `json:"citadelResidentBytes"`
	CitadelEach    float64       `json:"citadelBytesASecret"`
	Newcomer       time.Duration `json:"newcomerNs"` // Secret of an account that is made in the middle of that
	Pods           int           `json:"pods"`
	InTurn         []within      `json:"inTurnSvidWithin"` // when each pod starts after the one before has its certificate
	AtOnce         []within      `json:"atOnceSvidWithin"` // when all start at once
	AgentPerPod    float64       `json:"agentBytesAPod"`
	CertificateCPU time.Duration `json:"certificateCpuNs"` // of Citadel, for each certificate of these pods
}

// within says how many pods had their certificate within a time.
type within struct {
	Seconds float64 `json:"seconds"`
	Pods    int     `json:"pods"`
}

func identityCommand(c *common) *cobra.Command {
	accounts, pods := 5000, 100
	cmd := &cobra.Command{
		Use: "identity", Short: "First issuance of many Secrets; time from a pod's start to its certificate", Args: cobra.NoArgs,
		Long: "Makes service accounts in a namespace that has no Secrets, lets it have them, and waits until each has one. Then starts\n" +
			"pods that mount the agent's volume, and asks the agents how long each waited for its certificate.",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			ctx := cmd.Context()
			config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
			if err != nil {
				return err
			}
			config.QPS, config.Burst = 1000, 1000
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return err
			}
			b := &identityBench{client: client, result: identityResult{Accounts: accounts, Pods: pods}}
			if err := b.remove(); err != nil { // what a run that was killed has left
				return err
			}
			defer func() { err = errors.Join(err, b.remove()) }()
			if err := b.secrets(ctx); err != nil {
				return err
			}
			if b.result.InTurn, err = b.pods(ctx, "in-turn", 1); err != nil {
				return err
			}
			if err := b.clear(ctx); err != nil {
				return err
			}
			if b.result.AtOnce, err = b.atOnce(ctx); err != nil {
				return err
			}
			return c.write(cmd, &b.result)
		},
	}
	cmd.Flags().IntVar(&accounts, "accounts", accounts, "service accounts")
	cmd.Flags().IntVar(&pods, "pods", pods, "pods")
	return cmd
}

type identityBench struct {
	client kubernetes.Interface
	result identityResult
}

func (b *identityBench) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	err := b.client.CoreV1().Namespaces().Delete(ctx, identityNamespace, meta.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return wait.PollUntilContextCancel(ctx, time.Second, true, func(ctx context.Context) (bool, error) {
		_, err := b.client.CoreV1().Namespaces().Get(ctx, identityNamespace, meta.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
}

// secrets measures the first issuance of Secrets.
func (b *identityBench) secrets(ctx context.Context) error {
	progress("making %d service accounts", b.result.Accounts)
	ns := &core.Namespace{ObjectMeta: meta.ObjectMeta{Name: identityNamespace, Labels: map[string]string{mesh.SecretsLabel: "disabled"}}}
	if _, err := b.client.CoreV1().Namespaces().Create(ctx, ns, meta.CreateOptions{}); err != nil {
		return err
	}
	makers, makersCtx := errgroup.WithContext(ctx)
	makers.SetLimit(32)
	for i := range b.result.Accounts {
		makers.Go(func() error { return b.account(makersCtx, fmt.Sprintf("account-%d", i)) })
	}
	if err := makers.Wait(); err != nil {
		return err
	}
	before, err := b.citadel(ctx)
	if err != nil {
		return err
	}
	progress("letting them have Secrets")
	began := time.Now()
	delete(ns.Labels, mesh.SecretsLabel)
	if _, err := b.client.CoreV1().Namespaces().Update(ctx, ns, meta.UpdateOptions{}); err != nil {
		return err
	}
	newcomer := make(chan error, 1)
	go func() { newcomer <- b.newcomer(ctx) }()
	err = wait.PollUntilContextTimeout(ctx, 250*time.Millisecond, 5*time.Minute, true, func(ctx context.Context) (bool, error) {
		list, err := b.client.CoreV1().Secrets(identityNamespace).List(ctx, meta.ListOptions{FieldSelector: "type=" + mesh.SecretType, ResourceVersion: "0"})
		return err == nil && len(list.Items) > b.result.Accounts, nil // the namespace's default account has one, too
	})
	b.result.Secrets = time.Since(began)
	if err := errors.Join(err, <-newcomer); err != nil {
		return fmt.Errorf("waiting for the Secrets: %w", err)
	}
	after, err := b.citadel(ctx)
	if err != nil {
		return err
	}
	b.result.SecretsCPU = seconds(after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"])
	b.result.CitadelPeak = after["process_resident_memory_bytes"]
	b.result.CitadelEach = (b.result.CitadelPeak - before["process_resident_memory_bytes"]) / float64(b.result.Accounts)
	return nil
}

func (b *identityBench) account(ctx context.Context, name string) error {
	_, err := b.client.CoreV1().ServiceAccounts(identityNamespace).Create(ctx, &core.ServiceAccount{ObjectMeta: meta.ObjectMeta{Name: name}}, meta.CreateOptions{})
	return err
}

// newcomer makes an account once the others' Secrets are being written.
func (b *identityBench) newcomer(ctx context.Context) error {
	secrets := b.client.CoreV1().Secrets(identityNamespace)
	there := func(ctx context.Context, name string) error {
		return wait.PollUntilContextTimeout(ctx, 5*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
			_, err := secrets.Get(ctx, mesh.SecretName(name), meta.GetOptions{})
			return err == nil, nil
		})
	}
	if err := there(ctx, "account-0"); err != nil {
		return err
	}
	began := time.Now()
	if err := b.account(ctx, "newcomer"); err != nil {
		return err
	}
	err := there(ctx, "newcomer")
	b.result.Newcomer = time.Since(began)
	return err
}

// clear deletes the pods and waits until they are gone: a node takes only so many.
func (b *identityBench) clear(ctx context.Context) error {
	pods := b.client.CoreV1().Pods(identityNamespace)
	if err := pods.DeleteCollection(ctx, meta.DeleteOptions{}, meta.ListOptions{}); err != nil {
		return err
	}
	return wait.PollUntilContextTimeout(ctx, 500*time.Millisecond, 3*time.Minute, true, func(ctx context.Context) (bool, error) {
		list, err := pods.List(ctx, meta.ListOptions{ResourceVersion: "0"})
		return err == nil && len(list.Items) == 0, nil
	})
}

// atOnce starts all pods together, and measures what they take of Citadel and the agents.
func (b *identityBench) atOnce(ctx context.Context) ([]within, error) {
	agents, err := b.agents(ctx)
	if err != nil {
		return nil, err
	}
	before, err := b.citadel(ctx)
	if err != nil {
		return nil, err
	}
	times, err := b.pods(ctx, "at-once", b.result.Pods)
	if err != nil {
		return nil, err
	}
	after, err := b.citadel(ctx)
	if err != nil {
		return nil, err
	}
	if issued := after["bulwark_citadel_issued_total"] - before["bulwark_citadel_issued_total"]; issued > 0 {
		b.result.CertificateCPU = seconds((after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]) / issued)
	}
	now, err := b.agents(ctx)
	b.result.AgentPerPod = (now.resident - agents.resident) / float64(b.result.Pods)
	return times, err
}

// pods starts pods, so many at a time, each time when the ones before have their certificates, and returns how long the
// agents say that each waited for its certificate.
func (b *identityBench) pods(ctx context.Context, name string, together int) ([]within, error) {
	progress("starting %d pods, %d at a time", b.result.Pods, together)
	pilot, err := b.client.AppsV1().Deployments(mesh.Namespace).Get(ctx, mesh.PilotAccount, meta.GetOptions{})
	if err != nil {
		return nil, err
	}
	image := strings.Replace(pilot.Spec.Template.Spec.Containers[0].Image, "/pilot:", "/sample:", 1)
	before, err := b.agents(ctx)
	if err != nil {
		return nil, err
	}
	after := before
	for i := range b.result.Pods {
		if _, err := b.client.CoreV1().Pods(identityNamespace).Create(ctx, waiting(fmt.Sprintf("%s-%d", name, i), fmt.Sprintf("account-%d", i), image), meta.CreateOptions{}); err != nil {
			return nil, err
		}
		if started := i + 1; started%together != 0 && started < b.result.Pods {
			continue
		}
		err = wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, 5*time.Minute, true, func(ctx context.Context) (bool, error) {
			after, err = b.agents(ctx)
			return err == nil && after.count-before.count >= uint64(i+1), nil
		})
		if err != nil {
			return nil, fmt.Errorf("waiting for the pods' certificates: %w", err)
		}
	}
	var out []within
	for bound, n := range after.buckets {
		if !math.IsInf(bound, 1) {
			out = append(out, within{bound, int(n - before.buckets[bound])})
		}
	}
	slices.SortFunc(out, func(a, b within) int { return cmp.Compare(a.Seconds, b.Seconds) })
	return out, nil
}

// waiting is a pod that mounts the agent's volume and waits.
func waiting(name, account, image string) *core.Pod {
	yes, grace := true, int64(0)
	return &core.Pod{
		ObjectMeta: meta.ObjectMeta{Name: name},
		Spec: core.PodSpec{
			ServiceAccountName: account, TerminationGracePeriodSeconds: &grace, AutomountServiceAccountToken: new(bool),
			Containers: []core.Container{{Name: "app", Image: image, ImagePullPolicy: core.PullIfNotPresent, Args: []string{"wait"},
				VolumeMounts: []core.VolumeMount{{Name: "spiffe", MountPath: "/spiffe", ReadOnly: true}}}},
			Volumes: []core.Volume{{Name: "spiffe", VolumeSource: core.VolumeSource{CSI: &core.CSIVolumeSource{
				Driver: mesh.CSIDriver, ReadOnly: &yes, VolumeAttributes: map[string]string{"access": "any"}}}}},
		},
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// node is what the agents say together.
type node struct {
	count    uint64
	buckets  map[float64]uint64
	resident float64
}

func (b *identityBench) agents(ctx context.Context) (node, error) {
	out := node{buckets: map[float64]uint64{}}
	err := b.scrape(ctx, "agent", func(families map[string]*dto.MetricFamily) {
		out.resident += value(families["process_resident_memory_bytes"])
		for _, m := range families["bulwark_agent_first_svid_seconds"].GetMetric() {
			out.count += m.GetHistogram().GetSampleCount()
			for _, bucket := range m.GetHistogram().GetBucket() {
				out.buckets[bucket.GetUpperBound()] += bucket.GetCumulativeCount()
			}
		}
	})
	return out, err
}

// citadel returns the sums of some metrics over the replicas.
func (b *identityBench) citadel(ctx context.Context) (map[string]float64, error) {
	out := map[string]float64{}
	err := b.scrape(ctx, "citadel", func(families map[string]*dto.MetricFamily) {
		for _, name := range []string{"process_cpu_seconds_total", "process_resident_memory_bytes", "bulwark_citadel_issued_total"} {
			out[name] += value(families[name])
		}
	})
	return out, err
}

func value(f *dto.MetricFamily) float64 {
	sum := 0.0
	for _, m := range f.GetMetric() {
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return sum
}

// scrape reads the metrics of each pod of a component, through the API server.
func (b *identityBench) scrape(ctx context.Context, component string, take func(map[string]*dto.MetricFamily)) error {
	pods, err := b.client.CoreV1().Pods(mesh.Namespace).List(ctx, meta.ListOptions{LabelSelector: "app.kubernetes.io/name=" + component})
	if err != nil {
		return err
	}
	for _, pod := range pods.Items {
		text, err := b.client.CoreV1().Pods(mesh.Namespace).ProxyGet("http", pod.Name, fmt.Sprint(mesh.MonitoringPort), "metrics", nil).DoRaw(ctx)
		if err != nil {
			return fmt.Errorf("metrics of pod %s: %w", pod.Name, err)
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
		if err != nil {
			return fmt.Errorf("metrics of pod %s: %w", pod.Name, err)
		}
		take(families)
	}
	return nil
}

// Table implements report.Tabular.
func (r *identityResult) Table() report.Table {
	t := report.Table{Columns: []string{"what", "measured"}}
	t.Row(fmt.Sprintf("first issuance of %d Secrets", r.Accounts), report.Seconds(r.Secrets))
	t.Row("CPU of Citadel for each", report.Millis(r.SecretsCPU/time.Duration(r.Accounts)))
	t.Row("Citadel's resident memory after it", report.MB(r.CitadelPeak))
	t.Row("growth of it for 10,000 Secrets", report.MB(10000*r.CitadelEach))
	t.Row("Secret of an account that is made meanwhile", report.Millis(r.Newcomer))
	t.Row(fmt.Sprintf("%d pods started one after the other; with a certificate", r.Pods), share(r.InTurn))
	t.Row(fmt.Sprintf("%d pods started at once, on all nodes; with a certificate", r.Pods), share(r.AtOnce))
	t.Row("CPU of Citadel for a pod's certificate, pod watch and all", report.Millis(r.CertificateCPU))
	t.Row("growth of the agents' resident memory for 100 pods", report.MB(100*r.AgentPerPod))
	return t
}

func share(times []within) string {
	var parts []string
	last := -1
	for _, w := range times {
		if w.Pods != last {
			parts = append(parts, fmt.Sprintf("%d within %g ms", w.Pods, w.Seconds*1000))
			last = w.Pods
		}
	}
	return strings.Join(parts, ", ")
}
