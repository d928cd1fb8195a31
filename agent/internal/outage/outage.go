// Package outage tells the cluster when identities of the node's pods are not renewed: events on the pods, and on the
// node one for all of them.
package outage

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/pkg/printable"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

const (
	// Every is how often the identities are looked at.
	Every = 30 * time.Second
	// maxPodEvents bounds the pods' events of one look; the node's event stands for all.
	maxPodEvents = 20
)

// Reasons of the events.
const (
	Failing   = "IdentityRenewalFailing"
	Recovered = "IdentityRenewed"
)

// Recorder is the part of events.EventRecorder that is used. Repeated events become one with a count.
type Recorder interface {
	Eventf(regarding, related runtime.Object, eventType, reason, action, note string, args ...any)
}

// Watch looks after the pods of one node.
type Watch struct {
	Node     string
	Pods     func() []*identity.Identity
	Recorder Recorder
	Clock    clock.Clock

	failing map[string]bool // UIDs of the pods that were failing at the last look
}

// Run looks until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	for {
		timer := w.Clock.NewTimer(Every)
		select {
		case <-timer.C():
			w.look()
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// look compares with the last look. A node that goes on failing says so again each time, which only raises the count, unless it fails in another way.
func (w *Watch) look() {
	pods := w.Pods()
	slices.SortFunc(pods, func(a, b *identity.Identity) int {
		return slices.Compare([]string{a.String(), a.Facts.UID}, []string{b.String(), b.Facts.UID})
	})
	now, said := map[string]bool{}, 0
	recovered := 0
	var first *identity.Identity
	for _, p := range pods {
		st := p.Status()
		uid := p.Facts.UID
		switch failing := st.State == svid.Late || st.State == svid.Expired; {
		case failing:
			now[uid] = true
			if first == nil {
				first = p
			}
			if !w.failing[uid] && said < maxPodEvents {
				said++
				w.event(podOf(p), corev1.EventTypeWarning, Failing, failed(st), "the certificate of %s is not renewed and ends at %s: %v", p.ID, end(st), st.LastError)
			}
		case w.failing[uid]:
			recovered++
			if said < maxPodEvents {
				said++
				w.event(podOf(p), corev1.EventTypeNormal, Recovered, renew, "the certificate of %s is renewed", p.ID)
			}
		}
	}
	switch {
	case first != nil:
		st := first.Status()
		w.event(w.node(), corev1.EventTypeWarning, Failing, failed(st), "certificates of pods are not renewed (meshctl identity list shows which), such as that of %s, which ends at %s: %v", first, end(st), st.LastError)
	case recovered > 0:
		w.event(w.node(), corev1.EventTypeNormal, Recovered, renew, "the certificates of all pods are renewed again")
	}
	w.failing = now
}

const renew = "RenewIdentity"

// failed is the action that did: Events of one action are counted as one, with the text of the first, so that a failure for another reason would not be told.
func failed(st svid.Status) string { return renew + identity.Code(st.LastError) }

func (w *Watch) event(regarding runtime.Object, kind, reason, action, note string, args ...any) {
	const maxNote = 1000 // the API server takes 1024 bytes
	text := fmt.Sprintf(note, args...)
	if len(text) > maxNote {
		text = strings.ToValidUTF8(text[:maxNote], "")
	}
	w.Recorder.Eventf(regarding, nil, kind, reason, action, "%s", printable.Text(text))
}

func end(st svid.Status) string {
	if len(st.Certificates) == 0 {
		return "?"
	}
	return st.Certificates[0].NotAfter.UTC().Format(time.RFC3339)
}

func podOf(p *identity.Identity) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Facts.Namespace, Name: p.Facts.Pod, UID: types.UID(p.Facts.UID)},
	}
}

// node names the node as kubelet's own events do, by its name in place of a UID, so that kubectl describe finds them.
func (w *Watch) node() *corev1.Node {
	return &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: w.Node, UID: types.UID(w.Node)}}
}
