// Package revocation is the list of identities and certificates that are denied before they expire: Citadel keeps it in a
// ConfigMap and refuses to renew what is on it, Pilot turns it into policy for every proxy.
package revocation

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// ConfigKey is the entry of ConfigMap mesh.RevocationsConfig that holds the list.
const ConfigKey = "revocations.json"

// MaxEntries bounds the list: every proxy holds all of it.
const MaxEntries = 1000

// Revocation denies an identity, or one certificate of it.
type Revocation struct {
	Name     string    `json:"name"`             // by which it is undone
	Identity string    `json:"identity"`         // SPIFFE ID; always there
	Serial   string    `json:"serial,omitempty"` // hexadecimal; if set, only the certificate of this number is denied
	PodUID   string    `json:"podUID,omitempty"` // with Serial: the pod that holds it, which gets no other
	Reason   string    `json:"reason,omitempty"`
	By       string    `json:"by,omitempty"` // who revoked
	Created  time.Time `json:"created"`
	Expires  time.Time `json:"expires"` // when it ends by itself
}

// Validate returns what is wrong with the revocation.
func (r Revocation) Validate() error {
	if _, err := spiffe.Parse(r.Identity); err != nil {
		return err
	}
	if r.Serial != "" {
		n, ok := new(big.Int).SetString(r.Serial, 16)
		if !ok || n.Sign() <= 0 || n.Text(16) != r.Serial {
			return fmt.Errorf("serial number %q is not lower-case hexadecimal without leading zeros", r.Serial)
		}
	}
	switch {
	case r.Name == "" || strings.ContainsAny(r.Name, "/ \t\n"):
		return fmt.Errorf("name %q of a revocation", r.Name)
	case r.Created.IsZero() || !r.Expires.After(r.Created):
		return errors.New("a revocation ends after it began")
	}
	return nil
}

// SerialBytes is Serial as Envoy writes a certificate's number, with two digits a byte.
func (r Revocation) SerialBytes() string {
	if len(r.Serial)%2 == 1 {
		return "0" + r.Serial
	}
	return r.Serial
}

// List is the revocations that are in force, or were: see Active.
type List []Revocation

// Parse reads the data of the ConfigMap. A ConfigMap without the entry is an empty list; one that cannot be read whole
// is an error, and the caller keeps the last good list.
func Parse(data map[string]string) (List, error) {
	raw := data[ConfigKey]
	if raw == "" {
		return nil, nil
	}
	var list List
	if err := json.Unmarshal([]byte(raw), &list); err != nil {
		return nil, fmt.Errorf("list of revocations: %w", err)
	}
	if len(list) > MaxEntries {
		return nil, fmt.Errorf("list of revocations has %d entries, at most %d are possible", len(list), MaxEntries)
	}
	for _, r := range list {
		if err := r.Validate(); err != nil {
			return nil, fmt.Errorf("revocation %q: %w", r.Name, err)
		}
	}
	return list, nil
}

// Encode returns the data of the ConfigMap.
func (l List) Encode() (map[string]string, error) {
	raw, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding the list of revocations: %w", err)
	}
	return map[string]string{ConfigKey: string(raw)}, nil
}

// Active returns those that are in force at a time.
func (l List) Active(now time.Time) List {
	return slices.DeleteFunc(slices.Clone(l), func(r Revocation) bool { return !now.Before(r.Expires) })
}

// Denies returns the revocation by which the caller may have no certificate at a time: of its whole identity, or of the
// pod whose certificate was revoked. Serial and podUID may be empty.
func (l List) Denies(identity, serial, podUID string, now time.Time) (Revocation, bool) {
	for _, r := range l {
		if r.Identity != identity || !now.Before(r.Expires) {
			continue
		}
		if r.Serial == "" || r.Serial == serial || (r.PodUID != "" && r.PodUID == podUID) {
			return r, true
		}
	}
	return Revocation{}, false
}
