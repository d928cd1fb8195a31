package secrets

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"hash/crc32"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Reason is why a Secret was written or removed; it is the metric's label and the reason of the Event.
type Reason string

// Faults are replaced at once, before anything else.
const (
	Corrupt       Reason = "Corrupt"       // no certificate and key can be read from it
	KeyMismatch   Reason = "KeyMismatch"   // the key is not the certificate's
	WrongIdentity Reason = "WrongIdentity" // the certificate is another account's, or nobody's
	Expired       Reason = "Expired"
	NotYetValid   Reason = "NotYetValid"
	Untrusted     Reason = "Untrusted" // the certificate does not verify with the trust bundle, as with one of an old root
	Revoked       Reason = "Revoked"   // this certificate is; a revoked identity has none
	Edited        Reason = "Edited"    // owner, label or entries are not as Citadel writes them
	Deleted       Reason = "Deleted"   // it was there, and its account still is
)

// The rest is the usual course of things. What has a due time waits for its turn after faults and new accounts.
const (
	Created       Reason = "Created"
	BundleChanged Reason = "BundleChanged" // key and certificate stay
	Renewed       Reason = "Renewed"
	SignerChanged Reason = "SignerChanged" // the certificate is one of an earlier signer
	Removed       Reason = "Removed"
)

// routine says whether the reason waits for its turn.
func (r Reason) routine() bool { return r == BundleChanged || r == Renewed || r == SignerChanged }

// repair says whether the reason is a fault.
func (r Reason) repair() bool { return told[r] != "" }

// view is the CA's state as the controller sees it.
type view struct {
	*ca.State
	since time.Time // when this signer was first seen to sign
}

// facts are what a sound Secret holds.
type facts struct {
	version  string // of the Secret
	account  string // UID
	serial   string
	notAfter time.Time
	due      time.Time // for renewal
	signer   bool      // the certificate is of the current signer
	bundle   bool      // the trust bundle is the current one
	state    *ca.State // that signer and bundle compare with
}

// inspect returns what is wrong with the Secret of the account, if anything is, and otherwise the facts; with a routine
// reason, both.
func inspect(s *corev1.Secret, sa *corev1.ServiceAccount, v view, c Config, now time.Time) (facts, Reason) {
	pair, reason := readPair(s)
	if reason != "" {
		return facts{}, reason
	}
	leaf := pair.Leaf
	id, err := spiffe.FromCertificate(leaf)
	switch {
	case err != nil || id.Namespace != sa.Namespace || id.ServiceAccount != sa.Name || id.TrustDomain != c.TrustDomain:
		return facts{}, WrongIdentity
	case now.After(leaf.NotAfter):
		return facts{}, Expired
	case now.Before(leaf.NotBefore):
		return facts{}, NotYetValid
	case !verifies(pair, v.Roots, now):
		return facts{}, Untrusted
	case c.denies(key{Namespace: sa.Namespace, Name: sa.Name}, leaf.SerialNumber.Text(16)):
		return facts{}, Revoked
	case len(s.OwnerReferences) != 1 || s.OwnerReferences[0] != owner(sa), s.Labels[mesh.PartOfLabel] != mesh.PartOfValue, len(s.Data) != 3:
		return facts{}, Edited
	}
	f := facts{
		version: s.ResourceVersion, account: string(sa.UID), serial: leaf.SerialNumber.Text(16), notAfter: leaf.NotAfter,
		due: dueAt(leaf, c), signer: v.Signer.Signed(leaf), bundle: bytes.Equal(s.Data[mesh.RootCertKey], v.RootsPEM), state: v.State,
	}
	reason = Renewed
	if !f.signer {
		if at := slot(leaf, v.since, v.RenewWithin); at.Before(f.due) {
			f.due, reason = at, SignerChanged
		}
	}
	switch {
	case !now.Before(f.due):
		return f, reason
	case !f.bundle:
		return f, BundleChanged
	}
	return f, ""
}

// mismatch is in what crypto/tls says of a key that is not the certificate's; there is no value to compare with.
const mismatch = "does not match public key"

func readPair(s *corev1.Secret) (tls.Certificate, Reason) {
	pair, err := tls.X509KeyPair(s.Data[mesh.CertChainKey], s.Data[mesh.PrivateKeyKey])
	switch {
	case err == nil:
		return pair, ""
	case strings.Contains(err.Error(), mismatch):
		return pair, KeyMismatch
	default:
		return pair, Corrupt
	}
}

func verifies(pair tls.Certificate, bundle []*x509.Certificate, now time.Time) bool {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range bundle {
		roots.AddCert(r)
	}
	for _, der := range pair.Certificate[1:] {
		if inter, err := x509.ParseCertificate(der); err == nil {
			intermediates.AddCert(inter)
		}
	}
	_, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err == nil
}

// dueAt is the configured fraction of the certificate's life, shifted by the jitter so that what was issued together is
// not renewed together. It is earlier if less than the minimum would be left.
func dueAt(leaf *x509.Certificate, c Config) time.Time {
	issued := leaf.NotBefore.Add(ca.Backdate)
	life := leaf.NotAfter.Sub(issued)
	part := func(f float64) time.Duration { return time.Duration(float64(life) * f) }
	due, last := issued.Add(part(c.Fraction+c.Jitter*(2*phase(leaf)-1))), leaf.NotAfter.Add(-c.minimum()-part(c.Jitter*phase(leaf)))
	if last.Before(due) {
		return last
	}
	return due
}

// slot is when a certificate of an earlier signer is replaced: the first moment since then whose place in its period of
// that length is the certificate's own. Nothing has to be remembered for it: a new leader finds the same moments, so all
// are replaced within one period however often Citadel restarts meanwhile.
func slot(leaf *x509.Certificate, since time.Time, period time.Duration) time.Time {
	if period <= 0 {
		return since
	}
	at := since.Truncate(period).Add(time.Duration(phase(leaf) * float64(period)))
	if at.Before(since) {
		at = at.Add(period)
	}
	return at
}

// phase is a number from 0 to 1 that comes from the serial number: every replica, and the same one after a restart,
// finds the same.
func phase(leaf *x509.Certificate) float64 {
	return float64(crc32.ChecksumIEEE(leaf.SerialNumber.Bytes())) / (1 << 32)
}
