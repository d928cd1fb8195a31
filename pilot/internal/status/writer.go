package status

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/bulwark-mesh/bulwark/pilot/internal/enforcement"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// How the writer goes about it.
const (
	FieldManager = "bulwark-pilot"
	objectGap    = time.Second            // between two writes of one policy
	writeGap     = 100 * time.Millisecond // between two writes: a cluster full of bad policies is no reason to flood its API server
	deadline     = 10 * time.Second       // of a write
	lookEvery    = 10 * time.Minute       // through all policies, for what was missed, or changed by someone else
)

// Writer writes the conditions. Several Pilots may write them: each compares first, and a write that another one's has
// overtaken is refused by the API server.
type Writer struct {
	client   dynamic.Interface
	snapshot func() *registry.Snapshot
	stored   func(registry.Kind, string) *unstructured.Unstructured // as the informers have it
	backlog  *backlog
	writes   *prometheus.CounterVec
	log      *slog.Logger

	mu      sync.Mutex
	counts  map[registry.PolicyRef]enforcement.Count // that are to be written
	written map[registry.PolicyRef]time.Time         // of the last objectGap
}

// NewWriter returns a writer that is not running.
func NewWriter(client dynamic.Interface, snapshot func() *registry.Snapshot, stored func(registry.Kind, string) *unstructured.Unstructured,
	metrics prometheus.Registerer, log *slog.Logger) *Writer {
	w := &Writer{
		client: client, snapshot: snapshot, stored: stored, backlog: newBacklog(rand.Float64), log: log,
		counts: map[registry.PolicyRef]enforcement.Count{}, written: map[registry.PolicyRef]time.Time{},
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulwark_pilot_status_writes_total", Help: "Writes of policies' statuses."}, []string{"result"}),
	}
	metrics.MustRegister(w.writes, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bulwark_pilot_status_writes_waiting",
		Help: "Policies whose status is to be written."}, func() float64 { return float64(w.backlog.size()) }))
	return w
}

// Apply notes which of the changed policies need a write. It does not wait.
func (w *Writer) Apply(_ *registry.Snapshot, changes []registry.Change) {
	for _, c := range changes {
		if v, ok := c.Kind.Verdict(c.New); ok {
			w.note(c.Kind, v)
		}
	}
}

func (w *Writer) lookThroughAll() {
	for kind, v := range registry.Verdicts(w.snapshot()) {
		w.note(kind, v)
	}
}

func (w *Writer) note(kind registry.Kind, v registry.Verdict) {
	it := registry.PolicyRef{Kind: kind, ID: v.Namespace + "/" + v.Name}
	if w.patch(it, v) != nil {
		w.backlog.add(it, time.Now())
	}
}

// Run writes until ctx ends.
func (w *Writer) Run(ctx context.Context) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		it, in, ok := w.backlog.next(time.Now())
		if ok && w.write(ctx, it) {
			in = writeGap
		}
		timer := time.NewTimer(in)
		wake := w.backlog.wake
		if ok {
			wake = nil // the gap is kept
		}
		select {
		case <-wake:
		case <-timer.C:
		case <-look.C:
			w.lookThroughAll()
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

// write brings a policy's status up to date and reports whether it had to ask the API server.
func (w *Writer) write(ctx context.Context, it registry.PolicyRef) bool {
	v, ok := registry.VerdictOn(w.snapshot(), it.Kind, it.ID)
	if !ok {
		w.backlog.succeeded(it)
		w.settle(it)
		return false
	}
	patch := w.patch(it, v)
	if patch == nil {
		w.backlog.succeeded(it)
		return false
	}
	if until := w.next(it, time.Now()); !until.IsZero() {
		w.backlog.putOff(it, until)
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	_, err := w.client.Resource(it.Kind.Resource().GroupVersionResource).Namespace(v.Namespace).
		Patch(ctx, v.Name, types.MergePatchType, patch, meta.PatchOptions{FieldManager: FieldManager}, "status")
	switch {
	case err == nil:
		w.writes.WithLabelValues("written").Inc()
		w.backlog.succeeded(it)
		w.log.Debug("wrote the status of a policy", "kind", v.Kind, "policy", it.ID, "problems", len(v.Problems))
	case apierrors.IsNotFound(err):
		w.backlog.succeeded(it)
	case apierrors.IsConflict(err):
		w.writes.WithLabelValues("conflict").Inc()
		w.backlog.failed(it, time.Now()) // the informers will have caught up
	default:
		w.writes.WithLabelValues("error").Inc()
		w.backlog.failed(it, time.Now())
		w.log.Warn("writing the status of a policy", "kind", v.Kind, "policy", it.ID, "error", err)
	}
	return true
}

// patch makes the write that a policy needs, nil if it needs none. It replaces the list of conditions, which the API server
// cannot merge by type, and holds only for the version of the policy that the list was taken from.
func (w *Writer) patch(it registry.PolicyRef, v registry.Verdict) []byte {
	u := w.stored(it.Kind, it.ID)
	if u == nil || u.GetGeneration() != v.Generation {
		return nil // another change is on its way
	}
	have, _, err := unstructured.NestedSlice(u.Object, "status", "conditions")
	if err != nil {
		have = nil // not a list
	}
	want, differs := Wanted(v, have, time.Now())
	if n, ok := w.count(it); ok && n.Generation == v.Generation {
		var more bool
		want, more = WantedEnforced(v, n, want, time.Now())
		differs = differs || more
	}
	if !differs {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": u.GetResourceVersion()},
		"status":   map[string]any{"conditions": want},
	})
	if err != nil {
		w.log.Error("the status of a policy cannot be written", "policy", it.ID, "error", fmt.Errorf("marshalling: %w", err))
		return nil
	}
	return patch
}
