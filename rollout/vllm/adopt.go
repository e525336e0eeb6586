package vllm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

// Adopt implements rollout.Fleet: every server that answers brings the offered
// weights live, all at the same time, each as soon as no job of the old policy
// can still need it. Servers that are dead are reported and get the weights
// when they come back. It fails with a *rollout.QuorumError when fewer than the
// quorum succeeded, and refuses offers older than the last one.
func (f *Fleet) Adopt(ctx context.Context, offer rollout.Offer) (rollout.Adopted, error) {
	if err := checkOffer(offer); err != nil {
		return rollout.Adopted{}, err
	}
	select {
	case f.adopting <- struct{}{}:
		defer func() { f.update(func() { <-f.adopting }) }()
	case <-ctx.Done():
		return rollout.Adopted{}, fmt.Errorf("policy %s: waiting for the adoption before it: %w", offer.Policy, ctx.Err())
	case <-f.ctx.Done():
		return rollout.Adopted{}, ErrClosed
	}
	started := time.Now()
	first, err := f.announce(offer)
	if err != nil {
		return rollout.Adopted{}, err
	}
	adopted := rollout.Adopted{Policy: offer.Policy, Servers: make([]rollout.ServerAdopted, len(f.servers))}
	var wait sync.WaitGroup
	for i, s := range f.servers {
		wait.Go(func() {
			took, err := f.adopt(ctx, s, offer, first)
			adopted.Servers[i] = rollout.ServerAdopted{Server: s.id, Seconds: took.Seconds()}
			if err != nil {
				adopted.Servers[i].Err = err.Error()
			}
		})
	}
	wait.Wait()
	ok := 0
	for _, r := range adopted.Servers {
		if r.Err == "" {
			ok++
			adopted.Seconds = max(adopted.Seconds, r.Seconds)
		}
	}
	switch {
	case ctx.Err() != nil && ok < f.options.Quorum:
		return adopted, fmt.Errorf("adopting policy %s: %w", offer.Policy, ctx.Err())
	case f.ctx.Err() != nil:
		return adopted, ErrClosed
	case ok < f.options.Quorum:
		return adopted, &rollout.QuorumError{Adopted: adopted, Need: f.options.Quorum, Waited: time.Since(started)}
	}
	return adopted, nil
}

// checkOffer refuses offers that no server could follow.
func checkOffer(offer rollout.Offer) error {
	ok := false
	switch offer.Transport {
	case rollout.AsServed:
		ok = true
	case rollout.ByDirectory, rollout.ByLoRA:
		ok = offer.Path != ""
	case rollout.ByNCCL:
		ok = offer.NCCL != nil && offer.NCCL.URL != "" && offer.NCCL.Token != ""
	}
	if !ok {
		return fmt.Errorf("offer of policy %s: transport is %q with path %q and broadcast address %v, want directory or lora with a path, nccl with an address, or as_served",
			offer.Policy, offer.Transport, offer.Path, offer.NCCL != nil)
	}
	return nil
}

// announce makes offer the one that jobs are registered under. first says that
// it is the first of this fleet.
func (f *Fleet) announce(offer rollout.Offer) (first bool, err error) {
	f.update(func() {
		if f.offer != nil && offer.Policy.Older(f.offer.Policy) {
			err = fmt.Errorf("offer of policy %s is older than %s, the last one", offer.Policy, f.offer.Policy)
			return
		}
		first = f.offer == nil
		f.offer = &offer
	})
	return first, err
}

// adopt brings offer live on s. took is the time from pause to a verified
// server; draining is not in it.
func (f *Fleet) adopt(ctx context.Context, s *server, offer rollout.Offer, first bool) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.options.AdoptTimeout,
		fmt.Errorf("server %s: policy %s was not live after %s", s.id, offer.Policy, f.options.AdoptTimeout))
	defer cancel()
	stop := context.AfterFunc(f.ctx, cancel)
	defer stop()
	if first {
		if err := f.awaitStart(ctx, s); err != nil {
			return 0, err
		}
	}
	had := false
	err = f.await(ctx, func(time.Time) verdict {
		var v verdict
		v, had = f.turn(s, offer.Policy)
		return v
	})
	if err != nil || had {
		return 0, err
	}
	return f.change(ctx, s, offer)
}

// turn says whether s may change to policy now: done when it may, and then s is
// marked as adopting; had when it holds that policy already. It must be called
// under the lock.
func (f *Fleet) turn(s *server, policy rollout.Policy) (v verdict, had bool) {
	switch {
	case s.state == StateDead:
		return verdict{err: fmt.Errorf("server %s is dead: %s", s.id, s.why)}, false
	case s.state == StateAdopting: // by its monitor, after a restart
		return verdict{}, false
	case s.live != nil && *s.live == policy:
		return verdict{done: true}, true
	case s.state == StateHung || s.state == StatePaused:
		// Its jobs, if any, are lost or frozen; new weights need a server that moves.
		return verdict{err: fmt.Errorf("server %s is %s: %s", s.id, s.state, s.why)}, false
	case len(s.flights) > 0 || f.queuedBefore(policy) && s.live != nil:
		return verdict{}, false
	}
	f.begin(s, policy)
	return verdict{done: true}, false
}

// begin marks s as adopting policy. From here on its old weights are not
// believed. It must be called under the lock.
func (f *Fleet) begin(s *server, policy rollout.Policy) {
	s.live, s.reborn = nil, false
	s.changes++
	f.setState(s, StateAdopting, "policy "+policy.String())
}

// queuedBefore says whether jobs of a policy other than this one still look for
// a server.
func (f *Fleet) queuedBefore(policy rollout.Policy) bool {
	for p := range f.queued {
		if p != policy {
			return true
		}
	}
	return false
}

// awaitStart waits until s answers, at most the start timeout. It leaves the
// verdict on a server that does not to the state that its monitor gives it.
func (f *Fleet) awaitStart(ctx context.Context, s *server) error {
	limit := time.Now().Add(f.options.StartTimeout)
	return f.await(ctx, func(now time.Time) verdict {
		up := s.looked && s.state != StateDead
		return verdict{done: up || s.broken || !now.Before(limit), at: limit}
	})
}

// change does the work on a server that was marked as adopting.
func (f *Fleet) change(ctx context.Context, s *server, offer rollout.Offer) (took time.Duration, err error) {
	ctx, abandon := context.WithCancelCause(ctx)
	defer abandon(nil)
	f.update(func() { s.abandon = abandon })
	base, err := s.baseModel(ctx, f.options.Model)
	name := base.ID // to put into requests
	var coming broadcast
	if err == nil && offer.Transport == rollout.ByNCCL {
		coming, err = s.enrol(ctx, offer)
	}
	started := time.Now()
	if err == nil {
		switch offer.Transport {
		case rollout.ByDirectory:
			err = s.reload(ctx, offer)
		case rollout.ByNCCL:
			err = s.receive(ctx, coming)
		case rollout.ByLoRA:
			name, err = s.addAdapter(ctx, base, offer)
		}
	}
	if err == nil {
		if err = s.canary(ctx, name, offer.Policy); err != nil {
			err = &reloadError{offer.Transport != rollout.ByLoRA, err} // loaded, but does not compute
		}
	}
	if err == nil {
		s.dropAdapters(ctx)
	}
	took = time.Since(started)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w (%w)", err, context.Cause(ctx))
	}
	f.update(func() { err = f.settle(s, offer.Policy, name, err) })
	return took, err
}

// settle gives s the state that a change of weights left it in. It must be
// called under the lock.
func (f *Fleet) settle(s *server, policy rollout.Policy, model string, err error) error {
	var failed *reloadError
	s.changes++
	s.abandon = nil
	switch {
	case s.reborn: // whatever was done, was done to a process that is gone
		err = errors.Join(fmt.Errorf("server %s: was restarted while policy %s was brought to it", s.id, policy), err)
		if s.state == StateAdopting {
			f.setState(s, StateStale, "it was restarted")
		}
	case errors.As(err, &failed) && failed.broken:
		s.broken = true
		f.setState(s, StateDead, err.Error())
	case s.state != StateAdopting: // its monitor saw it die meanwhile
		if err == nil {
			err = fmt.Errorf("server %s is %s: %s", s.id, s.state, s.why)
		}
	case err != nil:
		s.strike(time.Now(), f.options.Quarantine)
		f.setState(s, StateStale, err.Error())
	default:
		s.model, s.live = model, &policy
		s.strikes, s.until, s.progressed = 0, time.Time{}, time.Now()
		f.setState(s, StateHealthy, "")
	}
	return err
}
