package secrets

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Progress is how far the Secrets are what they should be. A root rotation waits for it.
type Progress struct {
	Leading  bool // whether this replica reconciles; if not, the rest says nothing
	Syncing  bool // whether something waits to be looked at or written
	Accounts int  // that should have a Secret
	Ready    int  // of them, those whose Secret was verified and has the current signer and bundle

	// Of those that are not ready. One may count twice, as of the old bundle and the old signer.
	OldBundle int
	OldSigner int // valid, and replaced in the course of State.RenewWithin
	Missing   int // without a usable Secret
	Foreign   int // whose Secret's name is taken by an object that is not Citadel's

	Due       int           // whose certificate is due for renewal
	Overdue   time.Duration // the longest that one has been
	LastWrite time.Time     // by this replica, since it started
}

// Progress may be called from anywhere. It looks at each account once, and at no certificate.
func (c *Controller) Progress() Progress {
	s := c.running.Load()
	if s == nil {
		return Progress{}
	}
	p := Progress{Leading: true, Syncing: s.queue.Len() > 0}
	if last := c.lastWrite.Load(); last != nil {
		p.LastWrite = *last
	}
	accounts, err := s.accounts.List(labels.Everything())
	if err != nil {
		return p // a lister reads memory; it has no errors
	}
	now, state := s.now(), c.authority.Current()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sa := range accounts {
		k := key{Namespace: sa.Namespace, Name: sa.Name}
		if wanted, err := s.wanted(k); err != nil || !wanted || sa.DeletionTimestamp != nil {
			continue
		}
		p.Accounts++
		if s.taken[k] {
			p.Foreign++
			continue
		}
		f, known := s.known[k]
		secret, err := s.secrets.Secrets(sa.Namespace).Get(mesh.SecretName(sa.Name))
		if !known || err != nil || f.account != string(sa.UID) {
			p.Missing++
			continue
		}
		p.count(f, now, f.state == state && f.version == secret.ResourceVersion)
	}
	p.Syncing = p.Syncing || p.OldBundle > 0 || p.Ready+p.OldSigner < p.Accounts-p.Foreign
	return p
}

// Wanted is an account that is to have a Secret.
type Wanted struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	Secret         string `json:"secret"`            // its name
	Trouble        string `json:"trouble,omitempty"` // why it could not be written
}

// Wanted returns who is to have a Secret, by the rule by which Secrets are made. Whoever checks an installation asks for it
// here, so that there is no other rule. It is nil on a replica that does not reconcile.
func (c *Controller) Wanted() []Wanted {
	s := c.running.Load()
	if s == nil {
		return nil
	}
	accounts, err := s.accounts.List(labels.Everything())
	if err != nil {
		return nil // a lister reads memory; it has no errors
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []Wanted{}
	for _, sa := range accounts {
		k := key{Namespace: sa.Namespace, Name: sa.Name}
		if wanted, err := s.wanted(k); err != nil || !wanted || sa.DeletionTimestamp != nil {
			continue
		}
		w := Wanted{Namespace: sa.Namespace, ServiceAccount: sa.Name, Secret: mesh.SecretName(sa.Name), Trouble: s.failed[k]}
		if s.taken[k] {
			w.Trouble = errForeign.Error()
		}
		out = append(out, w)
	}
	return out
}

// count adds a Secret that is there. What is known of it may be of an earlier version or state; then it is neither ready
// nor old until somebody has looked.
func (p *Progress) count(f facts, now time.Time, fresh bool) {
	if late := now.Sub(f.due); late >= 0 {
		p.Due++
		p.Overdue = max(p.Overdue, late)
	}
	switch {
	case !fresh:
	case f.bundle && f.signer && now.Before(f.notAfter):
		p.Ready++
	default:
		if !f.bundle {
			p.OldBundle++
		}
		if !f.signer {
			p.OldSigner++
		}
	}
}

// collector makes metrics of Progress.
type collector struct{ *Controller }

func gauge(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("bulwark_citadel_secrets_"+name, help, nil, nil)
}

var (
	descAccounts  = gauge("accounts", "Service accounts that should have a Secret; 0 on a replica that does not reconcile.")
	descReady     = gauge("ready", "Service accounts whose Secret was verified and has the current signer and bundle.")
	descMissing   = gauge("missing", "Service accounts without a usable Secret.")
	descForeign   = gauge("foreign", "Service accounts whose Secret's name is taken by an object that is not Citadel's.")
	descOldBundle = gauge("old_bundle", "Secrets with an earlier trust bundle.")
	descOldSigner = gauge("old_signer", "Secrets with a certificate of an earlier signer.")
	descDue       = gauge("due", "Secrets whose certificate is due for renewal.")
	descOverdue   = gauge("overdue_seconds", "How long the oldest of these has been due.")
	descLast      = gauge("last_write_timestamp_seconds", "When this replica last wrote a Secret.")
)

// Describe implements prometheus.Collector.
func (c collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descAccounts, descReady, descMissing, descForeign, descOldBundle, descOldSigner, descDue, descOverdue, descLast} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	p := c.Progress()
	send := func(d *prometheus.Desc, v float64) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	send(descAccounts, float64(p.Accounts))
	send(descReady, float64(p.Ready))
	send(descMissing, float64(p.Missing))
	send(descForeign, float64(p.Foreign))
	send(descOldBundle, float64(p.OldBundle))
	send(descOldSigner, float64(p.OldSigner))
	send(descDue, float64(p.Due))
	send(descOverdue, p.Overdue.Seconds())
	if !p.LastWrite.IsZero() {
		send(descLast, float64(p.LastWrite.UnixMilli())/1000)
	}
}
