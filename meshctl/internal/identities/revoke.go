package identities

import (
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Target is what is to be revoked: an identity, or one certificate of it.
type Target struct {
	Identity string
	Serial   string
	Holder   Holder     // of the certificate; zero for an identity
	NotAfter *time.Time // of the certificate
}

// ParseIdentity reads a SPIFFE ID, or namespace/account of the trust domain.
func ParseIdentity(text, trustDomain string) (string, error) {
	if strings.HasPrefix(text, "spiffe://") {
		id, err := spiffe.Parse(text)
		return id.String(), err
	}
	namespace, account, ok := strings.Cut(text, "/")
	if !ok {
		return "", fmt.Errorf("%q is neither a SPIFFE ID nor NAMESPACE/ACCOUNT", text)
	}
	id, err := spiffe.New(trustDomain, namespace, account)
	return id.String(), err
}

// ParseSerial reads a serial number in hexadecimal as openssl and Envoy write it too: in capitals, with colons or a
// leading zero.
func ParseSerial(text string) (string, error) {
	digits := strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(text), "0x"), ":", "")
	n, ok := new(big.Int).SetString(digits, 16)
	if !ok || n.Sign() <= 0 {
		return "", fmt.Errorf("%q is not a serial number in hexadecimal", text)
	}
	return n.Text(16), nil
}

// BySerial returns the certificate of that number. Identity, if not empty, says whose it must be, and will do alone for
// a certificate that nobody shows any longer, such as a stolen one that was replaced since.
func BySerial(entries []Entry, serial, identity string) (Target, error) {
	for _, e := range entries {
		if e.Serial != serial {
			continue
		}
		if identity != "" && identity != e.Identity {
			return Target{}, fmt.Errorf("the certificate %s is of %s, not of %s", serial, e.Identity, identity)
		}
		return Of(e), nil
	}
	if identity == "" {
		return Target{}, fmt.Errorf("nobody shows a certificate of number %s now; name its identity too: identity revoke IDENTITY --serial %s", serial, serial)
	}
	return Target{Identity: identity, Serial: serial}, nil
}

// Of returns the certificate of an entry as a target.
func Of(e Entry) Target {
	return Target{Identity: e.Identity, Serial: e.Serial, Holder: e.HeldBy, NotAfter: e.NotAfter}
}

// PodUID is the pod that is to get no other certificate either.
func (t Target) PodUID() string {
	if t.Serial == "" || t.Holder.Kind == Secret {
		return ""
	}
	return t.Holder.UID
}

// DefaultFor is how long a revocation lasts if nobody says: a day, and as long as the certificate could be used.
func (t Target) DefaultFor(now time.Time) time.Duration {
	const day = 24 * time.Hour
	if t.NotAfter == nil {
		return day
	}
	return max(day, t.NotAfter.Sub(now)+time.Minute).Round(time.Second)
}

// Consequences says what a revocation until a time does and does not do, one sentence a line. Holders are those of the
// identity now.
func (t Target) Consequences(holders []Entry, until time.Time) []string {
	namespace, account, _ := strings.Cut(Short(t.Identity), "/")
	var out []string
	if t.Serial == "" {
		out = append(out, fmt.Sprintf("held now by %s", count(holders)),
			"as a client it is denied by every proxy, as a server nobody connects to it, and it gets no certificate or token; its Secret is removed within a minute",
			"a JWT-SVID that it has goes on to be valid until it ends, an hour at most")
	} else {
		out = append(out, "as a client this certificate is denied by every proxy; as a server it goes on, as clients cannot tell the certificates of one identity apart: revoke the identity for that")
		switch t.Holder.Kind {
		case Pod, Component:
			out = append(out, "the pod gets no other certificate: replace it when you are done (kubectl -n "+t.Holder.Namespace+" delete pod "+t.Holder.Name+")")
		case Secret:
			out = append(out, "Citadel replaces the Secret's key and certificate within a minute")
		default:
			out = append(out, "whether the certificate is of that identity could not be checked, and no pod is kept from getting another")
		}
		if t.NotAfter != nil && until.Before(*t.NotAfter) {
			out = append(out, "WARNING: the certificate is good until "+t.NotAfter.UTC().Format(time.RFC3339)+", and is accepted again when the revocation ends: use a longer --for")
		}
	}
	out = append(out, "requests on its open connections are denied too, and what is open, connections and streams, is ended within seconds")
	if namespace == mesh.Namespace {
		out = append(out, "WARNING: "+account+" is a part of the control plane")
	}
	return out
}

func count(holders []Entry) string {
	n := map[string]int{}
	for _, e := range holders {
		n[e.HeldBy.Kind]++
	}
	var parts []string
	for _, kind := range []string{Pod, Secret, Component} {
		switch n[kind] {
		case 0:
		case 1:
			parts = append(parts, "1 "+kind)
		default:
			parts = append(parts, fmt.Sprintf("%d %ss", n[kind], kind))
		}
	}
	if len(parts) == 0 {
		return "nobody: is the name right?"
	}
	return strings.Join(parts, ", ")
}
