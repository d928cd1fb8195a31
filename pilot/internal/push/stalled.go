package push

import (
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
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

// proxyStalled tells of a proxy that has not taken what is due to it, by the word of its agent.
func (s *Server) proxyStalled(st stall) {
	s.store.metrics.stalled.WithLabelValues(short(st.Type)).Inc()
	s.log.Error("a proxy does not take its configuration; its stream begins anew", "pod", st.pod.id, "type", short(st.Type),
		"resources", deltaxds.Quoted(st.Names), "for", st.For.String(), "waitsFor", st.Waits)
	s.event(st.pod.id, st.pod.uid, "Send"+strings.ToUpper(short(st.Type)), "the proxy goes on with old configuration: "+st.Error())
}

// agentStalled tells of an agent that has not taken what is due to its node, and returns the error with which its stream ends.
func (s *Server) agentStalled(a *agent) error {
	err := status.Errorf(codes.Aborted, "node %s has not taken its configuration for %s", a.pod.Node, deltaxds.StallLimit)
	s.store.metrics.stalled.WithLabelValues("node").Inc()
	s.log.Error("an agent does not take the configuration of its node; its stream begins anew", "node", a.pod.Node, "agent", a.pod.Name)
	s.event(mesh.Namespace+"/"+a.pod.Name, a.pod.UID, "SendConfiguration", "the proxies of the node go on with old configuration: "+err.Error())
	return err
}

// event records one on a pod, if not too many have been. Those of one action are counted as one within some minutes, with the note of the first.
func (s *Server) event(pod, uid, action, note string) {
	if !s.events.AllowN(s.options.Clock.Now(), 1) {
		return
	}
	const maxNote = 1000 // the API server takes 1024 bytes
	if len(note) > maxNote {
		note = strings.ToValidUTF8(note[:maxNote], "")
	}
	namespace, name, _ := strings.Cut(pod, "/")
	s.options.Recorder.Eventf(&corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)},
	}, nil, corev1.EventTypeWarning, Stalled, action, "%s", note)
}
