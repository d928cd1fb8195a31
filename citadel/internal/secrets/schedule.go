package secrets

import (
	"time"

	"k8s.io/apimachinery/pkg/labels"
)

// Scheduled is what an operator cannot see in a Secret itself.
type Scheduled struct {
	Namespace      string    `json:"namespace"`
	ServiceAccount string    `json:"serviceAccount"`
	NextRenewal    time.Time `json:"nextRenewal,omitzero"` // zero while nothing sound is known of the Secret
	LastError      string    `json:"lastError,omitempty"`  // of the last attempt to write it, if that failed
}

// Schedule returns when the accounts' Secrets are renewed, and which of them could not be written; nothing on a replica
// that does not reconcile. It may be called from anywhere.
func (c *Controller) Schedule() []Scheduled {
	s := c.running.Load()
	out := []Scheduled{}
	if s == nil {
		return out
	}
	accounts, err := s.accounts.List(labels.Everything())
	if err != nil {
		return out // a lister reads memory; it has no errors
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sa := range accounts {
		k := key{Namespace: sa.Namespace, Name: sa.Name}
		f, known := s.known[k]
		if failed := s.failed[k]; known || failed != "" {
			out = append(out, Scheduled{Namespace: k.Namespace, ServiceAccount: k.Name, NextRenewal: f.due, LastError: failed})
		}
	}
	return out
}

// noteFailure keeps why an account's Secret could not be written; nil is a success.
func (s *session) noteFailure(k key, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.failed, k)
		return
	}
	s.failed[k] = err.Error()
}
