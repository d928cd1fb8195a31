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
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"

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

// again is how long after a failure writing is tried again: kubelet may not have made the emptyDir yet.
const again = time.Second

// Writer keeps the files of one volume up to date.
type Writer struct {
	dir    string
	spec   Spec
	pod    *identity.Identity
	bundle *svid.Bundle
	log    *slog.Logger
	state  atomic.Pointer[error] // nil before the first write; then its outcome
}

// New returns a writer into the emptyDir beside a CSI volume.
func New(target string, s Spec, p *identity.Identity, b *svid.Bundle, log *slog.Logger) *Writer {
	return &Writer{dir: s.Dir(target), spec: s, pod: p, bundle: b, log: log}
}

// ErrNotWritten is why a pod has to wait: there is no SVID yet, or no directory for it.
var ErrNotWritten = errors.New("the pod's identity files are not written yet")

// Ready returns nil when there are files: of this writer, or of an earlier agent's.
func (w *Writer) Ready() error {
	outcome := w.state.Load()
	if outcome != nil && *outcome == nil {
		return nil
	}
	if _, err := os.Lstat(w.dir + "/" + keyFile); err == nil {
		return nil
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
	said := ""
	for {
		certificate := w.pod.Changed()
		trust, bundle, noBundle := w.bundle.Current()
		current, pending := w.pod.GetX509SVID()
		retry := (<-chan time.Time)(nil)
		if noBundle == nil && pending == nil {
			err := w.write(current, trust)
			w.state.Store(&err)
			if err == nil {
				client.Holds(identity.Held{Trusts: true, Sequence: trust.Sequence, Issuers: []string{hex.EncodeToString(current.Certificates[0].AuthorityKeyId)}})
				said = ""
			} else {
				if err.Error() != said {
					w.log.Warn("writing a pod's identity files", "pod", w.pod.String(), "error", err)
					said = err.Error()
				}
				retry = time.After(again + time.Duration(rand.Int64N(int64(again))))
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
	if err := replace(root, files, w.spec.UID, w.spec.GID, time.Now()); err != nil {
		return fmt.Errorf("files of pod %s: %w", w.pod, err)
	}
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
