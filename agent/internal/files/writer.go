package files

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// Names of the files.
const (
	certFile   = "tls.crt"     // chain, leaf first
	keyFile    = "tls.key"     // PKCS #8
	caFile     = "ca.crt"      // the roots of the trust domain
	bundleFile = "bundle.json" // the same, and the keys of JWT-SVIDs, as a SPIFFE bundle
)

var names = []string{certFile, keyFile, caFile, bundleFile}

// After a failure writing is tried again, at first soon: kubelet may not have made the emptyDir yet. Then more and more
// seldom: a pod that has it fail each time may keep the memory of the files of each time.
const (
	again   = time.Second
	longest = time.Minute
)

// Writer keeps the files of one volume up to date.
type Writer struct {
	dir    string
	spec   Spec
	pod    *identity.Identity
	bundle *svid.Bundle
	log    *slog.Logger
	state  atomic.Pointer[error] // nil before the first write; then its outcome
	said   map[string]string     // what was last logged under each heading; Run's alone
}

// New returns a writer into the emptyDir beside a CSI volume.
func New(target string, s Spec, p *identity.Identity, b *svid.Bundle, log *slog.Logger) *Writer {
	return &Writer{dir: s.Dir(target), spec: s, pod: p, bundle: b, log: log, said: map[string]string{}}
}

// ErrNotWritten is why a pod has to wait: there is no SVID yet, or no directory for it.
var ErrNotWritten = errors.New("the pod's identity files are not written yet")

// Ready returns nil when there are files: of this writer, or of an earlier agent's whose certificate is still good.
func (w *Writer) Ready() error {
	outcome := w.state.Load()
	if outcome != nil && *outcome == nil {
		return nil
	}
	if root, err := os.OpenRoot(w.dir); err == nil {
		defer root.Close()
		if check(root, time.Now()) == nil {
			return nil
		}
	}
	if outcome == nil {
		return fmt.Errorf("%w: %w", ErrNotWritten, svid.ErrPending)
	}
	return fmt.Errorf("%w: %w", ErrNotWritten, *outcome)
}

// Run writes now and with each change, until ctx ends.
func (w *Writer) Run(ctx context.Context) {
	client := w.pod.Connect(identity.ByFiles)
	defer client.Close()
	retries := backoff.NewExponentialBackOff()
	retries.InitialInterval, retries.MaxInterval, retries.Multiplier, retries.RandomizationFactor = again, longest, 2, 0.5
	for {
		certificate := w.pod.Changed()
		trust, bundle, noBundle := w.bundle.Current()
		current, pending := w.pod.GetX509SVID()
		retry := (<-chan time.Time)(nil)
		if noBundle == nil && pending == nil {
			err := w.write(current, trust)
			w.state.Store(&err)
			w.say("writing a pod's identity files", err)
			if err == nil {
				client.Holds(identity.Held{Trusts: true, Sequence: trust.Sequence, Issuers: []string{hex.EncodeToString(current.Certificates[0].AuthorityKeyId)}})
				retries.Reset()
			} else {
				retry = time.After(retries.NextBackOff())
			}
		}
		select {
		case <-certificate:
		case <-bundle:
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}

// say logs an error once, until it is another or over.
func (w *Writer) say(what string, err error) {
	now := ""
	if err != nil {
		now = err.Error()
	}
	if err != nil && now != w.said[what] {
		w.log.Warn(what, "pod", w.pod.String(), "error", err)
	}
	w.said[what] = now
}

// write returns nil when the files are there, even if earlier ones could not be removed.
func (w *Writer) write(s *x509svid.SVID, trust *svid.Trust) error {
	files, err := w.content(s, trust)
	if err != nil {
		return err
	}
	root, err := open(w.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	dir, err := replace(root, files, w.spec.UID, w.spec.GID, time.Now())
	if err != nil {
		return fmt.Errorf("files of pod %s: %w", w.pod, err)
	}
	w.say("removing a pod's earlier identity files", sweep(root, dir))
	return nil
}

func (w *Writer) content(s *x509svid.SVID, trust *svid.Trust) ([]file, error) {
	key, err := x509.MarshalPKCS8PrivateKey(s.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("encoding the key of %s: %w", s.ID, err)
	}
	return []file{
		{certFile, encode(s.Certificates), 0o444},
		{keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), fs.FileMode(w.spec.Mode)},
		{caFile, encode(trust.X509.X509Authorities()), 0o444},
		{bundleFile, trust.Document, 0o444},
	}, nil
}

func encode(certs []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certs {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a buffer takes everything
	}
	return out.Bytes()
}

// Remove removes the files. That kubelet has removed the emptyDir already is no error.
func Remove(target string, s Spec) error {
	root, err := os.OpenRoot(s.Dir(target))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing identity files: %w", err)
	}
	defer root.Close()
	if err := empty(root, names); err != nil {
		return fmt.Errorf("removing identity files: %w", err)
	}
	return nil
}
