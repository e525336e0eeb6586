package vllm

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

// Fleet implements rollout.Fleet over one or more servers. Make one with
// [NewFleet] and end it with Close.
//
// A job is registered when its policy is the one last offered; from then on it
// is served by that policy or dropped. Adopt makes a later offer the one that
// jobs are registered under, and each server changes its weights as soon as no
// registered job of the old policy can still need it.
type Fleet struct {
	options  Options
	servers  []*server
	adopting chan struct{} // holds a token while an Adopt runs

	ctx  context.Context // ends with Close
	stop context.CancelCauseFunc
	wait sync.WaitGroup // monitors

	mu      sync.Mutex
	changed chan struct{}          // closed and replaced at every change of what follows
	offer   *rollout.Offer         // the last one; nil before the first Adopt
	queued  map[rollout.Policy]int // registered jobs that are on no server
	line    []*ticket              // those of them that wait for one, first served first
	tickets uint64                 // given out so far
}

var _ rollout.Fleet = (*Fleet)(nil)

// NewFleet checks options and starts to watch the servers. They need not be up
// yet. Nothing is sampled before the first Adopt, because nobody knows which
// weights the servers hold.
func NewFleet(options Options) (*Fleet, error) {
	if err := options.validate(); err != nil {
		return nil, fmt.Errorf("vllm fleet: %w", err)
	}
	options = options.withDefaults()
	f := &Fleet{
		options: options, adopting: make(chan struct{}, 1),
		changed: make(chan struct{}), queued: map[rollout.Policy]int{},
	}
	f.ctx, f.stop = context.WithCancelCause(context.Background())
	for _, url := range options.Servers {
		f.servers = append(f.servers, newServer(url, options))
	}
	for _, s := range f.servers {
		f.wait.Go(func() { f.monitor(s) })
	}
	return f, nil
}

// Close ends all jobs in flight with [ErrClosed] and stops watching. It leaves
// the servers as they are.
func (f *Fleet) Close() error {
	f.stop(ErrClosed)
	f.wait.Wait()
	for _, s := range f.servers {
		s.close()
	}
	return nil
}

// Servers returns a snapshot of every server, in the order of the options.
func (f *Fleet) Servers() []ServerStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]ServerStatus, len(f.servers))
	for i, s := range f.servers {
		all[i] = s.status()
	}
	return all
}

// Commit implements rollout.Fleet. Servers keep nothing for redelivery, so
// there is nothing to forget.
func (f *Fleet) Commit(ctx context.Context, _ []rollout.JobID) error { return ctx.Err() }

// update changes state under the lock and wakes everybody who waits for it.
func (f *Fleet) update(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	f.wake()
}

// wake must be called under the lock.
func (f *Fleet) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// verdict is what a waiter's condition says: done, failed, or look again at the
// next change or at a given time.
type verdict struct {
	done bool
	err  error
	at   time.Time // zero: at the next change only
}

// await calls look under the lock, at every change of state and whenever it
// asks for it, until it is done or fails, ctx ends, or the fleet is closed.
func (f *Fleet) await(ctx context.Context, look func(now time.Time) verdict) error {
	for {
		f.mu.Lock()
		v := look(time.Now())
		changed := f.changed
		if v.done && v.err == nil {
			f.wake()
		}
		f.mu.Unlock()
		if v.done || v.err != nil {
			return v.err
		}
		var timer <-chan time.Time
		stop := func() bool { return true }
		if !v.at.IsZero() {
			t := time.NewTimer(time.Until(v.at))
			timer, stop = t.C, t.Stop
		}
		select {
		case <-changed:
		case <-timer:
		case <-ctx.Done():
			stop()
			return context.Cause(ctx)
		case <-f.ctx.Done():
			stop()
			return ErrClosed
		}
		stop()
	}
}

// describe lists the states of all servers for an error message. It must be
// called under the lock.
func (f *Fleet) describe() string {
	parts := make([]string, len(f.servers))
	for i, s := range f.servers {
		parts[i] = fmt.Sprintf("%s is %s", s.id, s.state)
		if s.why != "" {
			parts[i] += " (" + s.why + ")"
		}
	}
	return strings.Join(parts, "; ")
}

// setState changes the state of s and logs it. It must be called under the lock.
func (f *Fleet) setState(s *server, state State, why string) {
	if s.state != state || s.why != why {
		f.options.Log.Info("server state", "server", s.id, "from", s.state, "to", state, "why", why)
	}
	s.state, s.why = state, why
}
