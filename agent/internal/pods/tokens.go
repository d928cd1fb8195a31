package pods

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/bulwark-mesh/bulwark/agent/internal/files"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// tokens keeps the bound token of each pod where the next agent finds it, one file a pod: kubelet hands it over again
// only after a minute or two. It keeps them in memory, as kubelet does with the tokens that it projects into pods, and
// nowhere else. Keys are never among them. Who reads one must be root on the node, where kubelet has the same, and can
// use it only beside the token of this node's agent, until the pod ends. It is called with the registry's lock held.
type tokens struct {
	root *os.Root // nil where there is no such memory: then nothing is kept
	log  *slog.Logger
}

// bound is a pod's token, and its end: zero if it is not known.
type bound struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// String keeps the token out of logs.
func (b bound) String() string { return "token" }

// GoString does for %#v what String does.
func (b bound) GoString() string { return b.String() }

// newTokens makes the directory, for root alone.
func newTokens(dir string, log *slog.Logger) *tokens {
	root, err := inMemory(dir)
	if err != nil {
		log.Warn("on this node pods have no identity for up to 90 s after the agent restarts: their tokens cannot be kept meanwhile, as they are kept in memory only (tmpfs)", "tokenDir", dir, "error", err)
	}
	return &tokens{root, log}
}

func inMemory(dir string) (*os.Root, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of the pods' tokens: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("directory of the pods' tokens: %w", err)
	}
	memory, err := files.InMemory(root)
	if err == nil && !memory {
		err = errors.New("it is on a disk")
	}
	if err == nil {
		err = root.Chmod(".", 0o700) // whoever made it
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("directory of the pods' tokens: %w", err), root.Close())
	}
	return root, nil
}

const tokenSuffix = ".json"

// save keeps a token in place of the pod's earlier one. Only a UID of Kubernetes' kind becomes a file name.
func (t *tokens) save(uid string, b bound) error {
	if t.root == nil {
		return nil
	}
	if len(validation.IsDNS1123Label(uid)) > 0 {
		return fmt.Errorf("keeping a pod's token: %q is not the UID of a pod", uid)
	}
	content, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("keeping the token of pod %s: %w", uid, err)
	}
	const temporary = ".new" // an agent that dies here leaves it to load
	if err := t.root.WriteFile(temporary, content, 0o600); err != nil {
		return fmt.Errorf("keeping the token of pod %s: %w", uid, err)
	}
	if err := t.root.Rename(temporary, uid+tokenSuffix); err != nil {
		return fmt.Errorf("keeping the token of pod %s: %w", uid, err)
	}
	return nil
}

// remove forgets a pod's token. It is no error if there is none.
func (t *tokens) remove(uid string) error {
	if t.root == nil {
		return nil
	}
	if err := t.root.Remove(uid + tokenSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the token of pod %s: %w", uid, err)
	}
	return nil
}

// load returns the tokens that are good at the time now, by the UIDs of their pods, and removes whatever else it finds.
func (t *tokens) load(now time.Time) map[string]bound {
	if t.root == nil {
		return nil
	}
	entries, err := fs.ReadDir(t.root.FS(), ".")
	if err != nil {
		t.log.Warn("tokens of earlier pods; kubelet will hand them over again", "error", err)
	}
	out := map[string]bound{}
	for _, e := range entries {
		b, err := t.read(e)
		if err == nil && (svid.Tokens{Workload: b.Token, Expires: b.Expires}).Valid(now) {
			out[strings.TrimSuffix(e.Name(), tokenSuffix)] = b
			continue
		}
		if err != nil {
			t.log.Warn("a pod's token cannot be read and is removed; kubelet will hand it over again", "file", e.Name(), "error", err)
		}
		if err := t.root.RemoveAll(e.Name()); err != nil {
			t.log.Warn("removing a pod's token", "file", e.Name(), "error", err)
		}
	}
	return out
}

func (t *tokens) read(e fs.DirEntry) (bound, error) {
	if !e.Type().IsRegular() || !strings.HasSuffix(e.Name(), tokenSuffix) {
		return bound{}, errors.New("not a file of a token")
	}
	content, err := t.root.ReadFile(e.Name())
	if err != nil {
		return bound{}, err
	}
	var b bound
	if json.Unmarshal(content, &b) != nil || b.Token == "" {
		return bound{}, errors.New("not a token in JSON") // the decoder's error would quote it
	}
	return b, nil
}

func (t *tokens) close() {
	if t.root != nil {
		_ = t.root.Close() // there is nothing to do about an error
	}
}
