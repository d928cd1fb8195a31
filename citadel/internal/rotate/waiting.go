package rotate

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Holder is a live component of the mesh and what it has said that it holds.
type Holder struct {
	Component       string // pilot, citadel, mixer or agent
	Pod             string
	Node            string
	Heard           bool // it has said something at all
	Sequence        uint64
	ProxiesSequence uint64
	Issuers         map[string]uint32 // certificates in use by authority key ID (hexadecimal)
	Behind          []string
}

// Observation is what the leader sees of the mesh.
type Observation struct {
	Holders []Holder

	BundlesBehind   int       // ConfigMaps and webhook configurations without the bundle
	BundlesWritten  time.Time // the last write of one
	SecretsBehind   int       // workload Secrets without the bundle, or missing
	SecretsOld      int       // workload Secrets whose certificate is another signer's
	SecretsWritten  time.Time // the last write of one
	MountsOfSecrets int       // pods that mount a workload Secret
	MountsOfBundle  int       // pods that mount the bundle's ConfigMap
	Settling        bool      // the controllers have not looked at everything yet
}

// Wait is something that a phase waits for.
type Wait struct {
	For  string `json:"for"`  // who or what
	What string `json:"what"` // what is missing
}

// maxWaits bounds what is shown of a large mesh.
const maxWaits = 50

// Waiting returns what the rotation waits for in its phase. Signer is the subject key ID of the key that signs now;
// settle is how long kubelet may take to bring a changed Secret or ConfigMap into the pods that mount it.
func Waiting(c CA, o Observation, signer []byte, settle time.Duration, now time.Time) []Wait {
	if c.Rotation.Phase == Idle {
		return nil
	}
	var out []Wait
	add := func(who, format string, args ...any) { out = append(out, Wait{who, fmt.Sprintf(format, args...)}) }
	if o.Settling {
		add("citadel", "this replica has not looked at every Secret and namespace yet")
	}
	current := hex.EncodeToString(signer)
	for _, h := range o.Holders {
		if what := h.lacks(c, current); what != "" {
			add(h.name(), "%s", what)
		}
	}
	if o.BundlesBehind > 0 {
		add("ConfigMaps and webhooks", "%d have not got the bundle yet", o.BundlesBehind)
	}
	if o.SecretsBehind > 0 {
		add("workload Secrets", "%d have not got the bundle yet", o.SecretsBehind)
	}
	if c.Rotation.Phase == Signing && o.SecretsOld > 0 {
		add("workload Secrets", "%d have a certificate of another signer", o.SecretsOld)
	}
	if left := settle - now.Sub(o.SecretsWritten); o.MountsOfSecrets > 0 && left > 0 {
		add("pods that mount workload Secrets", "kubelet brings the new ones to %d pods within %s", o.MountsOfSecrets, left.Round(time.Second))
	}
	if left := settle - now.Sub(o.BundlesWritten); o.MountsOfBundle > 0 && left > 0 {
		add("pods that mount the trust bundle", "kubelet brings the new one to %d pods within %s", o.MountsOfBundle, left.Round(time.Second))
	}
	slices.SortStableFunc(out, func(a, b Wait) int { return strings.Compare(a.For, b.For) })
	if len(out) > maxWaits {
		more := len(out) - maxWaits
		out = append(out[:maxWaits], Wait{"others", fmt.Sprintf("%d more", more)})
	}
	return out
}

// lacks says what a component does not have yet that the phase is to bring it; empty when it has all.
func (h Holder) lacks(c CA, signer string) string {
	switch {
	case !h.Heard:
		return "has not said yet what it holds"
	case h.Sequence < c.Sequence:
		return fmt.Sprintf("holds bundle %d, not %d", h.Sequence, c.Sequence)
	case h.ProxiesSequence < c.Sequence:
		return "has proxies with an older bundle" + some(h.Behind)
	}
	if c.Rotation.Phase != Signing {
		return ""
	}
	var old uint32
	for issuer, n := range h.Issuers {
		if issuer != signer {
			old += n
		}
	}
	if old > 0 {
		return fmt.Sprintf("holds certificates of another signer: %d%s", old, some(h.Behind))
	}
	return ""
}

func (h Holder) name() string {
	if h.Node == "" {
		return h.Component + " " + h.Pod
	}
	return h.Component + " " + h.Pod + " on " + h.Node
}

func some(pods []string) string {
	if len(pods) == 0 {
		return ""
	}
	return " (" + strings.Join(pods[:min(3, len(pods))], ", ") + ")"
}

// Step is what the leader does next: advance when nothing is waited for, or when an operator forced it. It reports
// whether c changed.
func Step(c CA, waits []Wait, now time.Time) (CA, bool, error) {
	if c.Rotation.Phase == Idle || c.Rotation.Paused || (len(waits) > 0 && !c.Rotation.Forced) {
		return c, false, nil
	}
	next, err := Advance(c, now)
	return next, err == nil, err
}
