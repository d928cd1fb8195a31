package keyserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/jwt"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// world is Pilot as far as key servers go: what policies name, and what it holds.
type world struct {
	t       *testing.T
	s       *Servers
	reg     *registry.Registry
	mu      sync.Mutex
	asked   []time.Time
	answer  func() (jwt.Keys, time.Duration, error)
	held    map[string]string
	said    []error
	follows bool // what it is given comes into force
	config  *fake.Clientset
}

const source = "https://issuer.example/keys"

func newWorld(t *testing.T) *world {
	t.Helper()
	reg, err := registry.New()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, reg: reg, held: map[string]string{}}
	w.config = fake.NewClientset(&core.ConfigMap{ObjectMeta: meta.ObjectMeta{Name: mesh.KeySetsConfig, Namespace: mesh.Namespace}})
	w.begin()
	return w
}

// begin has a Pilot start that asks nobody yet.
func (w *world) begin() {
	w.held = map[string]string{}
	w.s = New(Options{Memory: Memory{w.config.CoreV1().ConfigMaps(mesh.Namespace)}, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Forbids: none,
		Put: func(e registry.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			delete(w.held, e.ID)
			if set, ok := e.Object.(*registry.KeySet); ok {
				w.held[e.ID] = set.Keys
				if w.follows {
					go w.s.Apply(w.reg.Snapshot(), []registry.Change{{Kind: e.Kind, ID: e.ID, New: e.Object}})
				}
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

// answers has servers answer so from now on.
func (w *world) answers(how func() (jwt.Keys, time.Duration, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = how
}

// count is how often servers have been asked, and keys are those that are held.
func (w *world) count() int {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.asked)
}

func (w *world) keys() string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held[source]
}

// reports are what has been said of answers.
func (w *world) reports() []error {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.said)
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
		w.answers(fails)
		defer w.run()()
		w.want("0 map[]")
		w.name(source)
		w.want("1 map[]") // none has ever been seen
		w.answers(answers("first", 0))
		time.Sleep(2 * time.Second) // not 20 minutes, when the server comes up after the policy
		w.want("2 map[" + source + ":first]")
		w.answers(answers("second", 0))
		time.Sleep(17 * time.Minute)
		w.want("2 map[" + source + ":first]")
		time.Sleep(4 * time.Minute)
		w.want("3 map[" + source + ":second]")
		w.answers(fails)
		time.Sleep(6 * time.Hour)
		if n := w.count(); n < 300 || n > 800 {
			t.Errorf("a server that is down was asked %d times in six hours", n)
		}
		if w.keys() != "second" {
			t.Errorf("a server is down, and its keys are %q", w.keys())
		}
		w.answers(answers("third", 5*time.Minute))
		time.Sleep(2 * time.Minute)
		before := w.count()
		time.Sleep(5 * time.Minute)
		if w.count() != before+1 || w.keys() != "third" {
			t.Errorf("asked %d times more in the five minutes for which an answer holds; keys %q", w.count()-before, w.keys())
		}
		if said := w.reports(); len(said) != 4 || said[0] == nil || said[1] != nil || said[2] == nil || said[3] != nil {
			t.Errorf("said: %v", said)
		}
		for _, why := range []string{"connection refused", "connection refused", "it answers 503", "connection refused"} {
			w.answers(func() (jwt.Keys, time.Duration, error) { return jwt.Keys{}, 0, errors.New(why) })
			time.Sleep(25 * time.Minute)
		}
		if said := w.reports(); len(said) != 7 || said[5].Error() != "it answers 503" {
			t.Errorf("of a failure for another reason is said: %v", said)
		}
		w.answers(answers("fourth", time.Second))
		time.Sleep(5 * time.Minute)
		before = w.count()
		time.Sleep(time.Minute)
		if w.count() > before+2 {
			t.Errorf("asked %d times in a minute of one whose answers hold for a second", w.count()-before)
		}
		w.name()
		before = w.count()
		time.Sleep(time.Hour)
		w.want(fmt.Sprint(before, " map[]"))
	})
}

func TestUnknownKeysBringTheNextQuestionForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.answers(answers("first", 0))
		defer w.run()()
		w.name(source)
		w.want("1 map[" + source + ":first]")
		time.Sleep(time.Minute)
		w.answers(answers("second", 0))
		w.s.Demand("https://nobody.example/keys")
		w.want("1 map[" + source + ":first]")
		w.s.Demand(source)
		w.want("2 map[" + source + ":second]")
		for range 6000 { // a minute of tokens of keys that there are not
			w.s.Demand(source)
			time.Sleep(10 * time.Millisecond)
		}
		if w.count() > 4 {
			t.Errorf("asked %d times", w.count())
		}
	})
}

func TestKeysOutliveAPilot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		good, _, err := jwt.ReadKeys([]byte(keySet(t, "one")))
		if err != nil {
			t.Fatal(err)
		}
		w.answers(answers(good.Text, 0))
		stop := w.run()
		w.name(source, "https://b.example")
		time.Sleep(5 * time.Second)
		w.name(source)
		time.Sleep(time.Minute)
		good, _, err = jwt.ReadKeys([]byte(keySet(t, "two")))
		if err != nil {
			t.Fatal(err)
		}
		w.answers(answers(good.Text, 0))
		w.s.Demand(source)
		synctest.Wait()
		stop() // at once
		if n := len(w.config.Actions()); n < 5 || n > 7 {
			t.Errorf("the API server is asked %d times", n)
		}
		w.answers(fails)
		w.begin()
		defer w.run()()
		w.want("3 map[]")
		changes := []registry.Change{{Kind: registry.RequestAuths}}
		w.s.Apply(w.reg.Snapshot(), changes)
		w.want("4 map[" + source + ":" + good.Text + "]")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if w.s.WaitTried(ctx); ctx.Err() == nil {
			t.Error("keys that are not in force yet are not waited for")
		}
		w.s.Apply(w.reg.Snapshot(), []registry.Change{{Kind: registry.KeySets, ID: source, New: &registry.KeySet{ID: source}}})
		w.s.WaitTried(t.Context())
		time.Sleep(24 * time.Hour)
		if w.keys() != good.Text {
			t.Errorf("after a day without the key server: %q", w.keys())
		}
	})
}

// What could not be written down is tried again, less and less often, until it is; a Pilot that ends meanwhile tries once more.
func TestKeysAreWrittenDownInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		good, _, err := jwt.ReadKeys([]byte(keySet(t, "one")))
		if err != nil {
			t.Fatal(err)
		}
		w.answers(answers(good.Text, 0))
		tries, refused := 0, true
		w.config.PrependReactor("update", "configmaps", func(k8stesting.Action) (bool, runtime.Object, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if tries++; refused {
				return true, nil, errors.New("the API server is away")
			}
			return false, nil, nil
		})
		after := func(d time.Duration) int {
			time.Sleep(d)
			synctest.Wait()
			w.mu.Lock()
			defer w.mu.Unlock()
			return tries
		}
		stop := w.run()
		w.name(source)
		if n := after(10 * time.Minute); n < 10 || n > 25 {
			t.Errorf("%d tries within ten minutes", n)
		}
		w.mu.Lock()
		refused = false
		w.mu.Unlock()
		done := after(2 * time.Minute)
		kept, err := Memory{w.config.CoreV1().ConfigMaps(mesh.Namespace)}.load(t.Context())
		if err != nil || kept[source] != good.Text {
			t.Errorf("it is never written: %v, %v", kept, err)
		}
		if n := after(15 * time.Minute); n != done {
			t.Errorf("what is written is written again, %d times", n-done)
		}
		if good, _, err = jwt.ReadKeys([]byte(keySet(t, "two"))); err != nil {
			t.Fatal(err)
		}
		w.mu.Lock()
		refused = true
		w.mu.Unlock()
		w.answers(answers(good.Text, 0))
		w.s.Demand(source)
		synctest.Wait()
		stop() // at once
		if n := after(time.Hour); n != done+1 {
			t.Errorf("at the end it is tried %d times, want once", n-done)
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
		w.follows = true
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
