package run

import (
	"encoding/hex"
	"slices"
	"time"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
)

// maxBehind is how many pods a report names.
const maxBehind = 20

// addPods adds to the agent's own report what the pods of its node hold. A pod without a client holds no bundle. Its
// certificate in the agent's memory counts whether or not anyone has taken it, until it ends; one that a client has
// taken and the agent has replaced counts as long as the client has no other. A pod that was taken over from an earlier
// agent, and of which this one does not know yet what it holds, holds the worst. Signer is the key that signs now.
func addPods(h *identityv1.Holding, pods []*identity.Identity, signer []byte, now time.Time) {
	current := hex.EncodeToString(signer)
	for _, p := range pods {
		issuers, behind := map[string]bool{}, false
		if st := p.Status(); len(st.Certificates) > 0 && now.Before(st.Certificates[0].NotAfter) {
			issuers[hex.EncodeToString(st.Certificates[0].AuthorityKeyId)] = true
		}
		for _, c := range p.Clients() {
			for _, issuer := range c.Issuers {
				issuers[issuer] = true
			}
			if c.Trusts {
				h.Proxies++
				h.ProxiesSequence = min(h.ProxiesSequence, c.Sequence)
				behind = behind || c.Sequence < h.Sequence
			}
		}
		if p.Unknown() {
			issuers["unknown"], behind = true, true
			h.ProxiesSequence = 0
		}
		for issuer := range issuers {
			h.Issuers[issuer]++
			behind = behind || (len(signer) > 0 && issuer != current)
		}
		if behind {
			h.Behind = append(h.Behind, p.String())
		}
	}
	slices.Sort(h.Behind)
	h.Behind = h.Behind[:min(len(h.Behind), maxBehind)]
}
