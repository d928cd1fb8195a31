package run

import (
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// workload is what the operator sees of a pod: never a key or token.
type workload struct {
	Namespace      string     `json:"namespace"`
	Pod            string     `json:"pod"`
	UID            string     `json:"uid"`
	ServiceAccount string     `json:"serviceAccount"`
	Identity       string     `json:"identity"`
	State          svid.State `json:"state"`
	Since          time.Time  `json:"since"` // when it came to be in that state
	Serial         string     `json:"serial,omitempty"`
	Issuer         string     `json:"issuer,omitempty"`
	IssuerKeyID    string     `json:"issuerKeyID,omitempty"` // authority key ID, hexadecimal
	NotBefore      *time.Time `json:"notBefore,omitempty"`
	NotAfter       *time.Time `json:"notAfter,omitempty"`
	NextRenewal    *time.Time `json:"nextRenewal,omitempty"` // or the next attempt, while it fails
	Failures       int        `json:"failures,omitempty"`    // since the last success
	LastError      string     `json:"lastError,omitempty"`
	Delivery       []string   `json:"delivery"`                 // socket, files
	BundleSequence *uint64    `json:"bundleSequence,omitempty"` // the oldest that a client of the pod has taken
}

func workloads(all []*identity.Identity) []workload {
	out := make([]workload, 0, len(all))
	for _, p := range all {
		out = append(out, view(p))
	}
	slices.SortFunc(out, func(a, b workload) int {
		return strings.Compare(a.Namespace+"/"+a.Pod, b.Namespace+"/"+b.Pod)
	})
	return out
}

// detail is a workload with all of its certificates, leaf first and in PEM.
type detail struct {
	workload
	Chain []string `json:"chain"`
}

// detailOf returns the detail of the pod with that UID.
func detailOf(all []*identity.Identity, uid string) (detail, error) {
	for _, p := range all {
		if p.Facts.UID != uid {
			continue
		}
		d := detail{workload: view(p), Chain: []string{}}
		for _, c := range p.Status().Certificates {
			d.Chain = append(d.Chain, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})))
		}
		return d, nil
	}
	return detail{}, fmt.Errorf("no pod of UID %s has a socket on this node", uid)
}

func view(p *identity.Identity) workload {
	st := p.Status()
	w := workload{
		Namespace: p.Facts.Namespace, Pod: p.Facts.Pod, UID: p.Facts.UID, ServiceAccount: p.Facts.ServiceAccount, Identity: p.ID.String(),
		State: st.State, Since: st.Since, Failures: st.Failures, Delivery: p.Delivery(),
	}
	if len(st.Certificates) > 0 {
		leaf := st.Certificates[0]
		w.Serial, w.Issuer, w.IssuerKeyID, w.NotBefore, w.NotAfter = leaf.SerialNumber.Text(16), leaf.Issuer.String(), hex.EncodeToString(leaf.AuthorityKeyId), &leaf.NotBefore, &leaf.NotAfter
	}
	if !st.NextRenewal.IsZero() {
		w.NextRenewal = &st.NextRenewal
	}
	if st.LastError != nil {
		w.LastError = st.LastError.Error()
	}
	for _, c := range p.Clients() {
		if c.Trusts && (w.BundleSequence == nil || c.Sequence < *w.BundleSequence) {
			w.BundleSequence = &c.Sequence
		}
	}
	return w
}
