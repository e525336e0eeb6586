package vllm

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

// observation is what one look at a server saw.
type observation struct {
	err     error // it did not answer, or said that it is not well
	refused bool  // nobody listens there: not slow, gone
	metrics metrics
	paused  bool
	changes int // of the server when the look began
}

// look probes s. It takes no lock.
func (f *Fleet) look(s *server) observation {
	ctx, cancel := context.WithTimeoutCause(f.ctx, f.options.ProbeTimeout,
		fmt.Errorf("no answer within %s", f.options.ProbeTimeout))
	defer cancel()
	if err := s.health(ctx); err != nil {
		return observation{err: err, refused: errors.Is(err, syscall.ECONNREFUSED)}
	}
	var o observation
	var status *StatusError
	o.metrics, o.err = s.metrics(ctx)
	if errors.As(o.err, &status) {
		o.err = nil // a server without such a page is watched by its answers only
	}
	if o.err == nil {
		// Asked of the engine, which may be busy: no answer is no news.
		o.paused, _, _ = s.paused(ctx)
	}
	return o
}

// order is what a monitor must do after it judged an observation.
type order int

const (
	nothing order = iota
	adopt         // the server has not the current weights: bring them
	prod          // it looks hung and has no jobs: ask for a token to find out
)

// monitor watches s until the fleet is closed.
func (f *Fleet) monitor(s *server) {
	ticks := time.NewTicker(f.options.ProbeEvery)
	defer ticks.Stop()
	for {
		f.mu.Lock()
		changes := s.changes
		f.mu.Unlock()
		o := f.look(s)
		o.changes = changes
		if f.ctx.Err() != nil {
			return
		}
		var todo order
		var offer *rollout.Offer
		f.update(func() {
			todo = f.judge(s, o, time.Now())
			offer = f.offer
		})
		switch todo {
		case adopt:
			f.readopt(s, *offer)
		case prod:
			f.prod(s)
		}
		select {
		case <-ticks.C:
		case <-f.ctx.Done():
			return
		}
	}
}

// judge changes the state of s by what was seen. It must be called under the
// lock.
func (f *Fleet) judge(s *server, o observation, now time.Time) order {
	if o.err != nil {
		f.judgeSilence(s, o)
		return nothing
	}
	s.misses = 0
	restarted := s.looked && s.restarted(o.metrics)
	advanced := !s.looked || !o.metrics.known || o.metrics.progress > s.progress
	s.looked, s.lost = true, false
	s.speed.look(o.metrics, now)
	if o.metrics.known {
		s.start, s.progress = o.metrics.start, o.metrics.progress
	}
	if advanced {
		s.advance(now)
		if !o.paused {
			f.markProgress(s)
		}
	}
	switch {
	case restarted:
		s.end(errDead)
		s.live, s.broken, s.reborn = nil, false, true
		if s.state == StateAdopting {
			return nothing // whoever changes its weights finds that out
		}
		f.setState(s, StateStale, "it was restarted")
	case s.state == StateAdopting || s.broken:
		return nothing
	case s.state == StateDead: // the same process answers again
		f.setState(s, s.back(), "")
	}
	switch {
	case o.paused && s.live != nil && o.changes == s.changes: // else it may be our own pause that was seen
		f.setState(s, StatePaused, "somebody paused it")
	case s.state == StatePaused && !o.paused:
		s.progressed = now
		f.setState(s, s.back(), "")
	case s.state == StateHung && advanced:
		f.setState(s, s.back(), "")
	case s.state == StateHung && len(s.flights) == 0:
		return prod
	case s.serving() && len(s.flights) > 0 && now.Sub(s.progressed) >= f.patienceWith(s):
		f.setState(s, StateHung, fmt.Sprintf("no progress for %s with %d jobs", now.Sub(s.progressed).Round(time.Millisecond), len(s.flights)))
		s.end(errHung)
	case f.lags(s) && !now.Before(s.until):
		f.begin(s, f.offer.Policy)
		return adopt
	case s.serving():
		f.judgeSpeed(s)
	}
	return nothing
}

// lags says whether s missed the last offer, nobody is about to bring it, and
// no job stands in the way. It must be called under the lock.
func (f *Fleet) lags(s *server) bool {
	return f.offer != nil && len(f.adopting) == 0 && (s.serving() || s.state == StateStale) &&
		(s.live == nil || *s.live != f.offer.Policy && len(s.flights) == 0 && !f.queuedBefore(f.offer.Policy))
}

// markProgress tells whoever gave out the jobs of s, and those that wait for a
// server while s works on, that they go forward (see rollout.Progress). Requests
// are answered by one body at their end, so the server's counters are what can
// be seen of a job; a single job that hangs on a server that moves is ended by
// the request's timeout. A server without counters is believed while it answers
// probes. It must be called under the lock.
func (f *Fleet) markProgress(s *server) {
	for trip := range s.flights {
		trip.progress()
	}
	if len(s.flights) == 0 || s.live == nil {
		return
	}
	for _, waiting := range f.line {
		if waiting.policy == *s.live {
			waiting.progress()
		}
	}
}

// leastPaces is the number of signs of progress from which a pace is believed.
const leastPaces = 8

// advance books a sign of progress. The longest gap is forgotten slowly, so that
// one hiccup does not blind the watch for ever.
func (s *server) advance(now time.Time) {
	if len(s.flights) > 0 {
		s.gap = max(now.Sub(s.progressed), s.gap*49/50)
		s.paces++
	}
	s.progressed = now
}

// patienceWith is how long s may show no progress. To give a server up too
// early costs the work that it had done, never a result; but with nobody to take
// the jobs over there is nothing to win. It must be called under the lock.
func (f *Fleet) patienceWith(s *server) time.Duration {
	if s.paces < leastPaces || s.live == nil {
		return f.options.HangAfter
	}
	if f.another(s, *s.live) {
		return min(max(4*s.gap, 5*f.options.ProbeEvery), f.options.HangAfter)
	}
	return f.options.HangAfter
}

// judgeSilence books a failed probe. While weights are loaded a server may be
// too busy to answer, so only a closed door counts then.
func (f *Fleet) judgeSilence(s *server, o observation) {
	if s.state == StateAdopting && !o.refused {
		return
	}
	s.misses++
	if !o.refused && s.misses < f.options.DeadAfter {
		return
	}
	s.lost = true
	if s.state != StateDead {
		f.setState(s, StateDead, o.err.Error())
		s.end(errDead)
	}
}

// restarted says whether m comes from another process than what was seen
// before: its start differs, or its counters fell. A server that shows neither
// is believed to have been restarted if it did not answer in between: to load
// the weights again does no harm, and to sample from others does.
func (s *server) restarted(m metrics) bool {
	if s.start != 0 && m.start != 0 {
		return s.start != m.start
	}
	return s.lost || m.known && m.progress < s.progress
}

func (s *server) serving() bool { return s.state == StateHealthy || s.state == StateSlow }

// back is the state of a server that answers again.
func (s *server) back() State {
	if s.live == nil {
		return StateStale
	}
	return StateHealthy
}

// readopt brings the last offer live on a server that came back.
func (f *Fleet) readopt(s *server, offer rollout.Offer) {
	ctx, cancel := context.WithTimeoutCause(f.ctx, f.options.AdoptTimeout,
		fmt.Errorf("server %s: policy %s was not live after %s", s.id, offer.Policy, f.options.AdoptTimeout))
	defer cancel()
	if _, err := f.change(ctx, s, offer); err != nil && f.ctx.Err() == nil {
		f.options.Log.Warn("server could not catch up", "server", s.id, "policy", offer.Policy.String(), "error", err)
	}
}

// prod asks a server that looks hung for one token.
func (f *Fleet) prod(s *server) {
	f.mu.Lock()
	live, name := s.live, s.model
	f.mu.Unlock()
	if live == nil {
		return
	}
	ctx, cancel := context.WithTimeout(f.ctx, f.options.ProbeTimeout)
	defer cancel()
	if err := s.canary(ctx, name, *live); err != nil {
		return
	}
	f.update(func() {
		if s.state == StateHung {
			s.progressed = time.Now()
			f.setState(s, StateHealthy, "")
		}
	})
}
