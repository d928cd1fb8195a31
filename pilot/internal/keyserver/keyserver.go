// Package keyserver keeps the keys by which proxies verify tokens: it asks the servers that RequestAuthentications name, so that no proxy has to.
package keyserver

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/jwt"
)

// How often servers are asked.
const (
	refresh    = 20 * time.Minute // unless a server says that its keys hold for less
	soonest    = time.Minute      // whatever it says
	jitter     = 0.1              // by which part that is shifted at most, so that what began together does not go on together
	demanded   = 30 * time.Second // between two that tokens of unknown keys bring about
	firstRetry = time.Second
	lastRetry  = time.Minute

	maxSources = 1000
	atOnce     = 8 // servers that are asked
)

// Servers are those that are asked. Its methods may be called by several goroutines.
type Servers struct {
	fetch   func(context.Context, jwt.Source) (keys jwt.Keys, dropped []string, lasts time.Duration, err error)
	put     func(registry.Event)
	report  func(source string, err error)
	memory  Memory
	slots   chan struct{}
	log     *slog.Logger
	fetches *prometheus.CounterVec

	wake    chan struct{} // capacity one
	mu      sync.Mutex
	wanted  map[string]question
	running map[string]*follower // of Run
	failing map[string]string    // by source: why its last answer is of no use
	tried   map[string]bool
	kept    map[string]string // the last keys of each source
	dirty   chan struct{}     // capacity one: what is kept has changed
	inForce map[string]bool   // sources whose keys have come to where proxies have them from
	news    chan struct{}     // closed, and another one, when more is tried, or in force
}

// question is what a server is asked.
type question struct {
	jwt.Source
	timeout time.Duration
}

// follower asks one server, again and again.
type follower struct {
	question
	stop   context.CancelFunc
	demand chan struct{} // capacity one
}

// Options are what the asking depends on.
type Options struct {
	PrivateHosts []string                       // whose addresses may be private
	Forbids      func(netip.Addr) string        // why an address of the cluster's own must not be asked; empty if it may
	Put          func(registry.Event)           // takes key sets
	Report       func(source string, err error) // hears of each answer that differs from the last: a good one, which is nil, after a failure, and a failure for another reason than before
	Memory       Memory
	Metrics      prometheus.Registerer
	Log          *slog.Logger
}

// New returns servers of which none is asked yet.
func New(o Options) *Servers {
	s := &Servers{
		fetch: newClient(o.PrivateHosts, o.Forbids).fetch, put: o.Put, report: o.Report, slots: make(chan struct{}, atOnce), log: o.Log, wake: make(chan struct{}, 1),
		wanted: map[string]question{}, running: map[string]*follower{}, failing: map[string]string{}, tried: map[string]bool{}, news: make(chan struct{}), memory: o.Memory, kept: map[string]string{}, inForce: map[string]bool{}, dirty: make(chan struct{}, 1),
		fetches: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulwark_pilot_key_fetches_total", Help: "Key sets asked for, by outcome."}, []string{"result"}),
	}
	o.Metrics.MustRegister(s.fetches, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bulwark_pilot_key_sources_failing",
		Help: "Sources of keys whose last answer was of no use. Tokens are verified by the keys before it, if there were any."}, func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return float64(len(s.failing))
	}))
	return s
}

// Apply notes which servers are to be asked. It does not wait.
func (s *Servers) Apply(snap *registry.Snapshot, changes []registry.Change) {
	concerned := false
	for _, c := range changes {
		concerned = concerned || c.Kind == registry.RequestAuths
		if set, _ := c.New.(*registry.KeySet); set != nil {
			s.mu.Lock()
			s.inForce[set.ID] = true
			s.hasNews()
			s.mu.Unlock()
		}
	}
	if !concerned {
		return
	}
	wanted := map[string]question{}
	for r := range snap.RequestAuths() {
		if r.Ignored || r.Broken() {
			continue
		}
		for _, rule := range r.Rules {
			if rule.Source.IsZero() || jwt.OfMesh(rule.Source) {
				continue
			}
			id := rule.Source.String()
			if q, ok := wanted[id]; ok || len(wanted) < maxSources {
				wanted[id] = question{rule.Source, max(q.timeout, rule.Timeout)}
			}
		}
	}
	s.mu.Lock()
	s.wanted = wanted
	s.mu.Unlock()
	s.signal()
}

func (s *Servers) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Demand has a server asked before its time: a proxy has seen a token of a key that it does not know. However often that is, the server is not asked more than
// twice a minute for it.
func (s *Servers) Demand(source string) {
	s.mu.Lock()
	f := s.running[source]
	s.mu.Unlock()
	if f == nil {
		return
	}
	select {
	case f.demand <- struct{}{}:
	default:
	}
}

// Run asks until ctx ends.
func (s *Servers) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	kept, err := s.memory.load(ctx)
	if err != nil && ctx.Err() == nil {
		s.log.Warn("keys of before cannot be had; those of sources that do not answer now are unknown", "error", err)
	}
	s.mu.Lock()
	maps.Copy(s.kept, kept)
	s.mu.Unlock()
	all.Go(func() { s.remember(ctx) })
	for {
		s.reconcile(ctx, &all)
		select {
		case <-s.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Servers) reconcile(ctx context.Context, all *sync.WaitGroup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, f := range s.running {
		if s.wanted[id] == f.question {
			continue
		}
		f.stop()
		delete(s.running, id)
		if _, still := s.wanted[id]; !still {
			delete(s.failing, id)
			delete(s.tried, id)
			s.keep(id, "")
			s.put(registry.Event{Kind: registry.KeySets, ID: id})
		}
	}
	for id, q := range s.wanted {
		if s.running[id] != nil {
			continue
		}
		own, stop := context.WithCancel(ctx)
		f := &follower{q, stop, make(chan struct{}, 1)}
		s.running[id] = f
		if keys := s.kept[id]; keys != "" {
			s.put(registry.Event{Kind: registry.KeySets, ID: id, Object: &registry.KeySet{ID: id, Keys: keys}})
		}
		all.Go(func() { s.follow(own, id, f) })
	}
}

// follow asks one server until ctx ends.
func (s *Servers) follow(ctx context.Context, id string, f *follower) {
	retry := newRetry()
	for {
		lasts, err := s.ask(ctx, id, f.question)
		if ctx.Err() != nil {
			return
		}
		asked, wait := time.Now(), due(lasts)
		if err != nil {
			wait = retry.NextBackOff()
		} else {
			retry.Reset()
		}
		if !pause(ctx, wait, asked, f.demand) {
			return
		}
	}
}

// due is when an answer that holds for so long is to be asked for again.
func due(lasts time.Duration) time.Duration {
	wait := refresh
	if lasts > 0 {
		wait = min(wait, max(lasts, soonest))
	}
	return time.Duration(float64(wait) * (1 - jitter*rand.Float64()))
}

// pause waits, less if it is demanded, and reports whether to go on.
func pause(ctx context.Context, wait time.Duration, asked time.Time, demand <-chan struct{}) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return true
		case <-demand:
			if early := time.Until(asked.Add(demanded)); early < time.Until(asked.Add(wait)) {
				timer.Reset(max(early, 0))
			}
			demand = nil
		case <-ctx.Done():
			return false
		}
	}
}

// ask asks a server once, and hands on what it says.
func (s *Servers) ask(ctx context.Context, id string, q question) (time.Duration, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	within, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	keys, dropped, lasts, err := s.fetch(within, q.Source)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.Join(errors.New("it has not answered within "+q.timeout.String()), err)
	}
	s.mu.Lock()
	was, failed := s.failing[id]
	if !s.tried[id] {
		s.tried[id] = true
		s.hasNews()
	}
	if err != nil {
		s.failing[id] = err.Error()
	} else {
		delete(s.failing, id)
		s.keep(id, keys.Text)
	}
	s.mu.Unlock()
	if err != nil {
		s.fetches.WithLabelValues("failed").Inc()
		s.log.Warn("keys cannot be had; the last ones are kept, if there were any", "source", shown(id), "error", err)
	} else {
		s.fetches.WithLabelValues("fetched").Inc()
		s.log.Debug("keys are fetched", "source", shown(id), "keys", len(keys.IDs), "leftOut", len(dropped))
		s.put(registry.Event{Kind: registry.KeySets, ID: id, Object: &registry.KeySet{ID: id, Keys: keys.Text}})
	}
	if err != nil && err.Error() != was || err == nil && failed {
		s.report(id, err)
	}
	return lasts, err
}

// keep notes a source's last keys; none forgets it. It is called with mu held.
func (s *Servers) keep(id, keys string) {
	if s.kept[id] == keys {
		return
	}
	if s.kept[id] = keys; keys == "" {
		delete(s.kept, id)
	}
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// remember writes down what is kept, whenever it has changed and until it is written, until ctx ends, and once more then if there is something.
func (s *Servers) remember(ctx context.Context) {
	retry := newRetry()
	for {
		select {
		case <-s.dirty:
		case <-ctx.Done():
			select {
			case <-s.dirty:
			default:
				return
			}
		}
		for wait := saveEvery; ; wait = retry.NextBackOff() {
			goesOn := pause(ctx, wait, time.Now(), nil) // gathers
			err := s.memory.save(context.WithoutCancel(ctx), s.toKeep())
			if err == nil {
				retry.Reset()
				break
			}
			s.log.Warn("keys are not written down yet; a Pilot that starts while their servers are away will not have them", "error", err)
			if !goesOn {
				return
			}
		}
	}
}

// toKeep is what is kept, all of which is about to be written.
func (s *Servers) toKeep() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.dirty:
	default:
	}
	maps.DeleteFunc(s.kept, func(id, _ string) bool { _, wanted := s.wanted[id]; return !wanted })
	return maps.Clone(s.kept)
}

// newRetry is how long to wait after each failure in a row.
func newRetry() *backoff.ExponentialBackOff {
	out := backoff.NewExponentialBackOff()
	out.InitialInterval, out.MaxInterval, out.Multiplier, out.RandomizationFactor = firstRetry, lastRetry, 2, 0.5
	return out
}

// hasNews wakes who waits for it. It is called with mu held.
func (s *Servers) hasNews() {
	close(s.news)
	s.news = make(chan struct{})
}

// WaitTried returns when each server that is to be asked has been, and what is known is in force, or ctx ends: a proxy should not be told for a moment that there are no keys.
func (s *Servers) WaitTried(ctx context.Context) {
	for {
		s.mu.Lock()
		missing, news := false, s.news
		for id := range s.wanted {
			missing = missing || !s.tried[id] || s.kept[id] != "" && !s.inForce[id]
		}
		s.mu.Unlock()
		if !missing {
			return
		}
		select {
		case <-news:
		case <-ctx.Done():
			return
		}
	}
}
