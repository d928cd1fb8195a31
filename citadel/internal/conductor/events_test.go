package conductor

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
)

// told keeps what client-go tells Events of one object apart by, and their texts.
type told struct{ apart, texts []string }

func (r *told) Eventf(_, related runtime.Object, kind, reason, action, note string, args ...any) {
	r.apart = append(r.apart, fmt.Sprint(kind, reason, action, related))
	r.texts = append(r.texts, fmt.Sprintf(note, args...))
}

func (r *told) WithLogger(klog.Logger) events.EventRecorderLogger { return nil }

// Each step of a rotation, and each reason why there is no CA, is an Event of its own: none is counted to the one before it, which has another text.
func TestNoStepAndNoReasonIsLost(t *testing.T) {
	r := &told{}
	c := &Conductor{Events: r, Clock: clock.RealClock{}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	in := func(is rotate.Rotation) rotate.CA { return rotate.CA{Rotation: is} }
	begun := rotate.Rotation{Phase: rotate.Publishing, Reason: "one"}
	paused := begun
	paused.Paused = true
	c.tell(in(rotate.Rotation{Phase: rotate.Idle}), in(begun))
	c.tell(in(begun), in(paused))
	c.tell(in(paused), in(begun))
	c.tell(in(begun), in(rotate.Rotation{Phase: rotate.Idle, Last: "aborted: one"}))
	c.tell(in(rotate.Rotation{Phase: rotate.Idle}), in(rotate.Rotation{Phase: rotate.Publishing, Reason: "two"}))
	c.tell(in(begun), in(rotate.Rotation{Phase: rotate.Idle, Last: "aborted: two"}))
	for _, why := range []string{"the key is not the certificate's", "the key is not the certificate's", "the certificate has expired"} {
		c.fail(errors.New(why))
	}
	slices.Sort(r.apart)
	if len(r.texts) != 8 || len(slices.Compact(r.apart)) != 8 {
		t.Errorf("%d Events, of which %d are told apart: %q", len(r.texts), len(slices.Compact(r.apart)), r.texts)
	}
}
