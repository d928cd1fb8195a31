package callers

import (
	"errors"
	"net"
	"sync"
	"time"
)

// turn lets one connection of a pod at a time send large messages. It has them through and decoded within patience, or is
// cut off.
type turn struct {
	taken chan struct{} // has an entry while there is an owner

	mu    sync.Mutex
	owner *caller
	left  int // bytes that have begun and are not decoded
	timer *time.Timer
}

const (
	patience = 10 * time.Second
	// afterwards is how long the messages of a connection that has gone may still be decoded.
	afterwards = time.Second
	atOnce     = 2 * large
)

func newTurn() *turn { return &turn{taken: make(chan struct{}, 1)} }

// begin waits for the caller's turn, if it is not his already, to send messages of so many bytes.
func (t *turn) begin(c *caller, bytes int) error {
	t.mu.Lock()
	mine := t.owner == c
	if mine {
		t.left += bytes
	}
	over := mine && t.left > atOnce
	t.mu.Unlock()
	if over {
		return errors.New("too many large messages at once")
	}
	if mine {
		return nil
	}
	wait := time.NewTimer(patience)
	defer wait.Stop()
	select {
	case t.taken <- struct{}{}:
	case <-c.gone:
		return net.ErrClosed
	case <-wait.C:
		return errors.New("a large message while those of another connection were under way")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.owner, t.left = c, bytes
	t.timer = time.AfterFunc(patience, func() { t.expire(c) })
	return nil
}

func (t *turn) expire(c *caller) {
	t.mu.Lock()
	if t.owner != c {
		t.mu.Unlock()
		return
	}
	t.end()
	t.mu.Unlock()
	_ = c.Close() // there is nothing to do about an error
}

// decoded says that a large message is through.
func (t *turn) decoded(bytes int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left -= bytes; t.left <= 0 && t.owner != nil {
		t.end()
	}
}

// leave says that the caller's connection has gone.
func (t *turn) leave(c *caller) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.owner == c {
		t.timer.Reset(afterwards)
	}
}

func (t *turn) end() {
	t.timer.Stop()
	t.owner, t.left = nil, 0
	<-t.taken
}
