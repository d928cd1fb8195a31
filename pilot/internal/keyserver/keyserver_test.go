package keyserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/jwt"
)

// world is Pilot as far as key servers go: what policies name, and what it holds.
type world struct {
	t      *testing.T
	s      *Servers
	reg    *registry.Registry
	mu     sync.Mutex
	asked  []time.Time
	answer func() (jwt.Keys, time.Duration, error)
	held   map[string]string
	said   []error
}

const source = "https://issuer.example/keys"

func newWorld(t *testing.T) *world {
	t.Helper()
	reg, err := registry.New()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, reg: reg, held: map[string]string{}}
	w.s = New(Options{Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Forbids: none,
		Put: func(e registry.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			delete(w.held, e.ID)
			if set, ok := e.Object.(*registry.KeySet); ok {
				w.held[e.ID] = set.Keys
			}
		},
		Report: func(_ string, err error) { w.mu.Lock(); defer w.mu.Unlock(); w.said = append(w.said, err) },
	})
	w.s.fetch = func(ctx context.Context, _ jwt.Source) (jwt.Keys, []string, time.Duration, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.asked = append(w.asked, time.Now())
		keys, lasts, err := w.answer()
		return keys, nil, lasts, err
	}
	return w
}

// name has policies name sources, of which each has been there, or not.
func (w *world) name(sources ...string) {
	w.t.Helper()
	e := registry.Event{Kind: registry.RequestAuths, ID: "a/r"}
	if len(sources) > 0 {
		r := &registry.RequestAuth{ID: "a/r", Namespace: "a", Sources: sources}
		for _, s := range sources {
			r.Rules = append(r.Rules, jwt.Rule{Issuer: s, Source: jwt.Source{URI: s}, Timeout: time.Second})
		}
		e.Object = r
	}
	changes, err := w.reg.Apply([]registry.Event{e})
	if err != nil {
		w.t.Fatal(err)
	}
	w.s.Apply(w.reg.Snapshot(), changes)
}

func (w *world) run() (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.s.Run(ctx) }()
	return func() { cancel(); <-done }
}

// state is how often servers have been asked, and what is held.
func (w *world) state() string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprint(len(w.asked), w.held)
}

func (w *world) want(state string) {
	w.t.Helper()
	if got := w.state(); got != state {
		w.t.Fatalf("%s, want %s", got, state)
	}
}

func answers(text string, lasts time.Duration) func() (jwt.Keys, time.Duration, error) {
	return func() (jwt.Keys, time.Duration, error) { return jwt.Keys{Text: text}, lasts, nil }
}

func fails() (jwt.Keys, time.Duration, error) { return jwt.Keys{}, 0, errors.New("it is down") }

func TestKeysAreFetchedAgainAndKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.answer = fails
		defer w.run()()
		w.want("0 map[]")
		w.name(source)
		w.want("1 map[]") // none has ever been seen
		w.answer = answers("first", 0)
		time.Sleep(2 * time.Second) // not 20 minutes, when the server comes up after the policy
		w.want("2 map[" + source + ":first]")
		w.answer = answers("second", 0)
		time.Sleep(17 * time.Minute)
		w.want("2 map[" + source + ":first]")
		time.Sleep(4 * time.Minute)
		w.want("3 map[" + source + ":second]")
		w.answer = fails
		time.Sleep(6 * time.Hour)
		if n := len(w.asked); n < 300 || n > 800 {
			t.Errorf("a server that is down was asked %d times in six hours", n)
		}
		if w.held[source] != "second" {
			t.Errorf("a server is down, and its keys are %q", w.held[source])
		}
		w.answer = answers("third", 5*time.Minute)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		before := len(w.asked)
		time.Sleep(5 * time.Minute)
		if synctest.Wait(); len(w.asked) != before+1 || w.held[source] != "third" {
			t.Errorf("asked %d times more in the five minutes for which an answer holds; keys %q", len(w.asked)-before, w.held[source])
		}
		if len(w.said) != 4 || w.said[0] == nil || w.said[1] != nil || w.said[2] == nil || w.said[3] != nil {
			t.Errorf("said: %v", w.said)
		}
		w.answer = answers("fourth", time.Second)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		before = len(w.asked)
		time.Sleep(time.Minute)
		if synctest.Wait(); len(w.asked) > before+2 {
			t.Errorf("asked %d times in a minute of one whose answers hold for a second", len(w.asked)-before)
		}
		w.name()
		synctest.Wait()
		before = len(w.asked)
		time.Sleep(time.Hour)
		w.want(fmt.Sprint(before, " map[]"))
	})
}

func TestUnknownKeysBringTheNextQuestionForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.answer = answers("first", 0)
		defer w.run()()
		w.name(source)
		w.want("1 map[" + source + ":first]")
		time.Sleep(time.Minute)
		w.answer = answers("second", 0)
		w.s.Demand("https://nobody.example/keys")
		w.want("1 map[" + source + ":first]")
		w.s.Demand(source)
		w.want("2 map[" + source + ":second]")
		for range 6000 { // a minute of tokens of keys that there are not
			w.s.Demand(source)
			time.Sleep(10 * time.Millisecond)
		}
		if synctest.Wait(); len(w.asked) > 4 {
			t.Errorf("asked %d times", len(w.asked))
		}
	})
}

func TestOneServerHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.s.fetch = func(ctx context.Context, s jwt.Source) (jwt.Keys, []string, time.Duration, error) {
			if s.URI == source {
				<-ctx.Done()
				return jwt.Keys{}, nil, 0, ctx.Err()
			}
			return jwt.Keys{Text: "good"}, nil, 0, nil
		}
		defer w.run()()
		w.name(source, "https://b.example")
		w.want("0 map[https://b.example:good]")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		w.s.WaitTried(ctx)
		if ctx.Err() != nil {
			t.Error("the server that does not answer is waited for, beyond its time")
		}
	})
}
