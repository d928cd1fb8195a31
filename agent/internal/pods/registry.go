// Package pods holds the pods of this node that have a socket: which pod a socket belongs to is who its callers are.
package pods

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/agent/internal/callers"
	"github.com/bulwark-mesh/bulwark/agent/internal/files"
	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
)

// Attach adds a service to the socket of a pod. The function it returns, which may be nil, runs as long as the pod has
// a socket.
type Attach func(p *identity.Identity, s grpc.ServiceRegistrar) func(context.Context)

// Registry is all pods of the node. Close it at the end.
type Registry struct {
	issuer   *identity.Issuer
	services []Attach
	store    *store
	tokens   *tokens
	log      *slog.Logger
	ctx      context.Context // of everything that runs for a pod; ends with Close
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu   sync.Mutex
	pods map[string]*pod // by UID
	vols map[string]Volume
}

// Volume is one CSI volume: the directory in which a pod finds its socket.
type Volume struct {
	ID     string         `json:"id"`
	Target string         `json:"target"`
	Any    bool           `json:"any,omitempty"`  // every uid may connect, not only the proxy's
	Files  files.Spec     `json:"files,omitzero"` // where the pod wants files beside the socket
	Facts  identity.Facts `json:"facts"`
}

type pod struct {
	identity *identity.Identity
	server   *grpc.Server
	callers  *callers.Callers
	cancel   context.CancelFunc
	done     chan struct{}
	sockets  map[string]*socket // by volume ID
	writers  map[string]*writer // by volume ID, of those with files
}

// writer is a files.Writer that runs.
type writer struct {
	*files.Writer
	cancel context.CancelFunc
	done   chan struct{}
}

// New returns a registry that remembers its volumes in a directory, and the tokens of its pods in another, tokenDir, if
// that is in memory.
func New(dir, tokenDir string, issuer *identity.Issuer, log *slog.Logger, services ...Attach) (*Registry, error) {
	s, err := newStore(dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Registry{
		issuer: issuer, services: services, store: s, tokens: newTokens(tokenDir, log), log: log,
		ctx: ctx, cancel: cancel, pods: map[string]*pod{}, vols: map[string]Volume{},
	}, nil
}

// Restore makes the sockets again that an earlier agent had made, in the same directories, so that pods which have them
// mounted go on. Their SVIDs come at once by the tokens that it kept; without one, when kubelet hands it over.
func (r *Registry) Restore() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	volumes, err := r.store.load()
	kept := r.tokens.load(r.issuer.Clock.Now())
	for _, v := range volumes {
		if !exists(v.Target) {
			_ = files.Remove(v.Target, v.Files)
			_ = r.store.remove(v.ID) // the pod went while no agent was there
			continue
		}
		_, e := r.publish(v, kept[v.Facts.UID], true)
		err = errors.Join(err, e)
	}
	for uid := range kept {
		if r.pods[uid] == nil {
			delete(kept, uid)
			err = errors.Join(err, r.tokens.remove(uid))
		}
	}
	if len(r.pods) > 0 {
		r.log.Info("took pods over from an earlier agent", "pods", len(r.pods), "withToken", len(kept))
	}
	return err
}

// Begun says whether a pod has had a volume of this driver since the node was started: its token is known, and tokens do not
// outlive the node's memory.
func (r *Registry) Begun(uid string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pods[uid]
	return p != nil && p.identity.HasToken()
}

// Publish gives a pod its socket, or renews its token. It does not wait for Citadel, and returns files.ErrNotWritten as
// long as a pod that wants files has none: it is called again, and the pod does not start without them.
func (r *Registry) Publish(v Volume, token string, expires time.Time) error {
	r.mu.Lock()
	w, err := r.publish(v, bound{token, expires}, false)
	r.mu.Unlock()
	if err != nil || w == nil {
		return err
	}
	return w.Ready()
}

// publish does it, with mu held, and returns the writer of the volume's files if it wants any. Restored says that an
// earlier agent has served the pod.
func (r *Registry) publish(v Volume, b bound, restored bool) (*writer, error) {
	if r.ctx.Err() != nil {
		return nil, errors.New("the agent is stopping")
	}
	if known, ok := r.vols[v.ID]; ok && known != v {
		return nil, fmt.Errorf("volume %s belongs to another pod or directory", v.ID)
	}
	for _, other := range r.vols {
		if other.ID != v.ID && other.Facts.UID == v.Facts.UID && v.Files.Volume != "" && other.Files.Volume == v.Files.Volume {
			return nil, fmt.Errorf("another volume of the pod has its files in the emptyDir %s already", v.Files.Volume)
		}
	}
	p := r.pods[v.Facts.UID]
	if p != nil && p.identity.Facts != v.Facts {
		return nil, fmt.Errorf("pod UID %s is known under another name", v.Facts.UID)
	}
	if p == nil {
		var err error
		if p, err = r.start(v.Facts, b, restored); err != nil {
			return nil, err
		}
		r.pods[v.Facts.UID] = p
	} else {
		r.give(p.identity, b)
	}
	if s := p.sockets[v.ID]; s == nil || !s.intact() {
		if err := r.open(p, v); err != nil {
			return nil, errors.Join(err, r.dropIfUnused(p))
		}
		r.vols[v.ID] = v
		if err := r.store.save(v); err != nil {
			return nil, err
		}
	}
	if v.Files == (files.Spec{}) {
		return nil, nil
	}
	return r.write(p, v), nil
}

// write has the files of a volume written from now on.
func (r *Registry) write(p *pod, v Volume) *writer {
	w := p.writers[v.ID]
	if w == nil {
		ctx, cancel := context.WithCancel(r.ctx)
		w = &writer{Writer: files.New(v.Target, v.Files, p.identity, r.issuer.Bundle, r.log), cancel: cancel, done: make(chan struct{})}
		p.writers[v.ID] = w
		r.wg.Go(func() {
			defer close(w.done)
			w.Run(ctx)
		})
	}
	return w
}

func (w *writer) stop() {
	w.cancel()
	<-w.done
}

// open puts a socket into the volume's directory and serves it.
func (r *Registry) open(p *pod, v Volume) error {
	s, err := listen(v)
	if err != nil {
		return err
	}
	if old := p.sockets[v.ID]; old != nil {
		old.close()
	}
	p.sockets[v.ID] = s
	r.wg.Go(func() {
		if err := p.server.Serve(p.callers.Listen(s.listener, v.Any)); err != nil && !errors.Is(err, grpc.ErrServerStopped) && !s.closed() {
			r.log.Error("serving a pod's socket", "pod", v.Facts.Namespace+"/"+v.Facts.Pod, "error", err)
		}
	})
	return nil
}

// give gives a pod its token, if there is one, and keeps one that is new for the next agent.
func (r *Registry) give(id *identity.Identity, b bound) {
	if b.Token == "" || !id.SetToken(b.Token, b.Expires) {
		return
	}
	if err := r.tokens.save(id.Facts.UID, b); err != nil {
		r.log.Warn("the next agent will have to wait for a pod's token", "pod", id.String(), "error", err)
	}
}

// start makes the server of a pod and what runs for it.
func (r *Registry) start(f identity.Facts, b bound, restored bool) (*pod, error) {
	id, err := r.issuer.New(f)
	if err != nil {
		return nil, err
	}
	if restored {
		id.Restored()
	}
	r.give(id, b)
	ctx, cancel := context.WithCancel(r.ctx)
	p := &pod{identity: id, cancel: cancel, done: make(chan struct{}), sockets: map[string]*socket{}, writers: map[string]*writer{}}
	p.callers = callers.New(r.log.With("pod", id.String()))
	p.server = grpc.NewServer(append(p.callers.ServerOptions(), grpc.WaitForHandlers(true))...)
	var running sync.WaitGroup
	running.Go(func() { id.Run(ctx) })
	for _, attach := range r.services {
		if run := attach(id, p.server); run != nil {
			running.Go(func() { run(ctx) })
		}
	}
	r.wg.Go(func() {
		running.Wait()
		close(p.done)
	})
	return p, nil
}

// Unpublish removes a volume's socket, and forgets the pod with its last. It is no error if there is none.
func (r *Registry) Unpublish(volumeID, target string) error {
	err := r.endFiles(volumeID)
	r.mu.Lock()
	defer r.mu.Unlock()
	if v, ok := r.vols[volumeID]; ok {
		if p := r.pods[v.Facts.UID]; p != nil {
			delete(p.writers, volumeID)
			if s := p.sockets[volumeID]; s != nil {
				s.close()
				delete(p.sockets, volumeID)
			}
			err = errors.Join(err, r.dropIfUnused(p))
		}
		delete(r.vols, volumeID)
	}
	return errors.Join(err, clean(target), r.store.remove(volumeID))
}

// endFiles stops the writing of a volume's files and removes them. It waits without the lock, so that no pod's directory
// holds up the others; the volume and its writer stay known meanwhile, so that nothing takes their place.
func (r *Registry) endFiles(volumeID string) error {
	r.mu.Lock()
	v := r.vols[volumeID]
	var w *writer
	if p := r.pods[v.Facts.UID]; p != nil {
		w = p.writers[volumeID]
	}
	r.mu.Unlock()
	if w == nil {
		return nil
	}
	w.stop()
	return files.Remove(v.Target, v.Files)
}

func (r *Registry) dropIfUnused(p *pod) error {
	if len(p.sockets) > 0 {
		return nil
	}
	delete(r.pods, p.identity.Facts.UID)
	p.stop()
	return r.tokens.remove(p.identity.Facts.UID)
}

func (p *pod) stop() {
	p.cancel()
	p.callers.Close()
	p.server.Stop() // its streams never end by themselves
	<-p.done
}

// Pods returns the pods that have a socket.
func (r *Registry) Pods() []*identity.Identity {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*identity.Identity, 0, len(r.pods))
	for _, p := range r.pods {
		out = append(out, p.identity)
	}
	return out
}

// Close stops serving. The sockets and tokens stay where they are, for the next agent to take over.
func (r *Registry) Close() {
	r.mu.Lock()
	r.cancel() // nothing is published after this
	all := r.pods
	r.pods = map[string]*pod{}
	r.mu.Unlock()
	for _, p := range all {
		for _, s := range p.sockets {
			s.close()
		}
		for _, w := range p.writers {
			w.stop() // the files stay as well
		}
		p.stop()
	}
	r.wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens.close()
}
