// Package identities is what meshctl knows of the mesh's identities: who holds which certificate. Nothing here asks
// anybody; package cli does.
package identities

import (
	"cmp"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Kinds of holders.
const (
	Pod       = "pod"       // of the mesh; its node's agent has the key
	Secret    = "secret"    // of a service account
	Component = "component" // of the control plane
)

// States beside those of an agent (pending, valid, due, late, expired).
const (
	StateValid   = "valid"
	StateDue     = "due"
	StateExpired = "expired"
	StateDamaged = "damaged" // a Secret without a certificate that can be read
	StateRevoked = "revoked"
)

// Entry is one certificate and who holds it. There is never a key in it.
type Entry struct {
	Identity       string     `json:"identity"`
	HeldBy         Holder     `json:"heldBy"`
	State          string     `json:"state"`
	Serial         string     `json:"serial,omitempty"`
	IssuerKeyID    string     `json:"issuerKeyID,omitempty"`
	NotBefore      *time.Time `json:"notBefore,omitempty"`
	NotAfter       *time.Time `json:"notAfter,omitempty"`
	NextRenewal    *time.Time `json:"nextRenewal,omitempty"`
	Failures       int        `json:"failures,omitempty"`
	LastError      string     `json:"lastError,omitempty"`
	RevokedBy      string     `json:"revokedBy,omitempty"` // name of the revocation
	Delivery       []string   `json:"delivery,omitempty"`
	BundleSequence *uint64    `json:"bundleSequence,omitempty"`
}

// Holder is a pod, Secret or component.
type Holder struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Node      string `json:"node,omitempty"`
	UID       string `json:"uid,omitempty"` // of a pod
}

func (h Holder) String() string {
	out := h.Kind + " " + h.Namespace + "/" + h.Name
	if h.Node != "" {
		out += " on " + h.Node
	}
	return out
}

// Workload is one pod with an identity, as its node's agent shows it.
type Workload struct {
	Namespace      string     `json:"namespace"`
	Pod            string     `json:"pod"`
	UID            string     `json:"uid"`
	ServiceAccount string     `json:"serviceAccount"`
	Identity       string     `json:"identity"`
	State          string     `json:"state"`
	Since          time.Time  `json:"since"`
	Serial         string     `json:"serial,omitempty"`
	Issuer         string     `json:"issuer,omitempty"`
	IssuerKeyID    string     `json:"issuerKeyID,omitempty"`
	NotBefore      *time.Time `json:"notBefore,omitempty"`
	NotAfter       *time.Time `json:"notAfter,omitempty"`
	NextRenewal    *time.Time `json:"nextRenewal,omitempty"`
	Failures       int        `json:"failures,omitempty"`
	LastError      string     `json:"lastError,omitempty"`
	Delivery       []string   `json:"delivery"`
	BundleSequence *uint64    `json:"bundleSequence,omitempty"`
}

// OfWorkload returns the entry of a pod on a node.
func OfWorkload(w Workload, node string) Entry {
	return Entry{
		Identity: w.Identity, HeldBy: Holder{Kind: Pod, Namespace: w.Namespace, Name: w.Pod, Node: node, UID: w.UID},
		State: w.State, Serial: w.Serial, IssuerKeyID: w.IssuerKeyID, NotBefore: w.NotBefore, NotAfter: w.NotAfter,
		NextRenewal: w.NextRenewal, Failures: w.Failures, LastError: w.LastError, Delivery: w.Delivery, BundleSequence: w.BundleSequence,
	}
}

// Scheduled is what Citadel says of an account's Secret.
type Scheduled struct {
	Namespace      string    `json:"namespace"`
	ServiceAccount string    `json:"serviceAccount"`
	NextRenewal    time.Time `json:"nextRenewal"`
	LastError      string    `json:"lastError"`
}

// OfSecret returns the entry of a workload Secret at a time; schedule is what Citadel says of it, if it has said anything.
func OfSecret(s *corev1.Secret, schedule Scheduled, trustDomain string, now time.Time) Entry {
	account := SecretAccount(s)
	e := Entry{HeldBy: Holder{Kind: Secret, Namespace: s.Namespace, Name: s.Name}, Delivery: []string{"secret"}, LastError: schedule.LastError}
	if id, err := spiffe.New(trustDomain, s.Namespace, account); err == nil {
		e.Identity = id.String()
	}
	chain, err := Chain(s.Data[mesh.CertChainKey])
	if err != nil {
		e.State, e.LastError = StateDamaged, cmp.Or(e.LastError, err.Error())
		return e
	}
	e.take(chain[0], now)
	if !schedule.NextRenewal.IsZero() {
		e.NextRenewal = &schedule.NextRenewal
		if e.State == StateValid && now.After(schedule.NextRenewal) {
			e.State = StateDue
		}
	}
	return e
}

// SecretAccount returns the account that a workload Secret is for.
func SecretAccount(s *corev1.Secret) string {
	var owners []string
	for _, o := range s.OwnerReferences {
		owners = append(owners, o.Name)
	}
	return mesh.SecretAccount(s.Name, owners...)
}

// OfComponent returns the entry of a component's pod and its certificate at a time.
func OfComponent(pod *corev1.Pod, leaf *x509.Certificate, now time.Time) Entry {
	e := Entry{HeldBy: Holder{Kind: Component, Namespace: pod.Namespace, Name: pod.Name, Node: pod.Spec.NodeName, UID: string(pod.UID)}, Delivery: []string{"memory"}}
	e.take(leaf, now)
	return e
}

func (e *Entry) take(leaf *x509.Certificate, now time.Time) {
	if id, err := spiffe.FromCertificate(leaf); err == nil {
		e.Identity = id.String()
	}
	e.Serial, e.IssuerKeyID = leaf.SerialNumber.Text(16), hex.EncodeToString(leaf.AuthorityKeyId)
	e.NotBefore, e.NotAfter, e.State = &leaf.NotBefore, &leaf.NotAfter, StateValid
	if now.After(leaf.NotAfter) {
		e.State = StateExpired
	}
}

// Chain reads PEM certificates, leaf first.
func Chain(content []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain: %w", len(out)+1, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no certificate")
	}
	return out, nil
}

// Mark notes who is revoked at a time.
func Mark(entries []Entry, list revocation.List, now time.Time) {
	for i, e := range entries {
		if r, denied := list.Denies(e.Identity, e.Serial, e.HeldBy.UID, now); denied {
			entries[i].RevokedBy = r.Name
		}
	}
}

// Sort puts entries in the order they are shown in: by identity, then by who holds them.
func Sort(entries []Entry) {
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Identity, b.Identity), cmp.Compare(a.HeldBy.String(), b.HeldBy.String()))
	})
}
