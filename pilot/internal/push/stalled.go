package push

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Stalled is the reason of the Event on a pod whose proxy does not take its configuration.
const Stalled = "ProxyNotUpdated"

// Events are bounded for all pods together: a network that fails stalls many proxies at once, and the API server has other
// things to do then. The metric and the log have them all.
const (
	eventsPerSecond = 1
	eventsAtOnce    = 20
)

// Recorder is the part of events.EventRecorder that is used. It does not block, and repeated events become one with a
// count.
type Recorder interface {
	Eventf(regarding, related runtime.Object, eventType, reason, action, note string, args ...any)
}

// stalled tells of a proxy that has not taken what is due to it. Its stream ends and is built anew.
func (s *Server) stalled(c *client, pod *registry.Pod, err *deltaxds.Stalled) {
	s.store.metrics.stalled.WithLabelValues(short(err.Type)).Inc()
	s.log.Error("a proxy does not take its configuration; its stream begins anew", "node", c.node, "type", short(err.Type),
		"resources", deltaxds.Quoted(err.Names), "for", err.For.String(), "waitsFor", err.Waits)
	if !s.events.AllowN(s.options.Clock.Now(), 1) {
		return
	}
	const maxNote = 1000 // the API server takes 1024 bytes
	note := "the proxy goes on with old configuration: " + err.Error()
	if len(note) > maxNote {
		note = strings.ToValidUTF8(note[:maxNote], "")
	}
	s.options.Recorder.Eventf(&corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.UID)},
	}, nil, corev1.EventTypeWarning, Stalled, "SendConfiguration", "%s", note)
}
