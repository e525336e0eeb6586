package vllm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

// Sample implements rollout.Fleet.
func (f *Fleet) Sample(ctx context.Context, job rollout.Job) (rollout.Group, error) {
	outer := ctx
	if !job.Deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, job.Deadline,
			fmt.Errorf("job deadline %s: %w", job.Deadline.Format(time.RFC3339), context.DeadlineExceeded))
		defer cancel()
	}
	group, err := f.sample(ctx, job)
	if err == nil {
		return group, nil
	}
	var dropped *rollout.Dropped
	switch {
	case outer.Err() != nil:
		return rollout.Group{}, outer.Err() // as it is: callers compare it
	case ctx.Err() != nil:
		return rollout.Group{}, &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonDeadline, Err: err}
	case f.ctx.Err() != nil:
		return rollout.Group{}, ErrClosed
	case errors.As(err, &dropped):
		return rollout.Group{}, dropped
	}
	return rollout.Group{}, &rollout.Dropped{Job: job.ID, Reason: reasonOf(err), Err: err}
}

// reasonOf is the reason of a drop after the last failure of a job.
func reasonOf(err error) rollout.Reason {
	var status *StatusError
	var garbage *GarbageError
	switch {
	case errors.As(err, &status) && status.refusal():
		return rollout.ReasonRefused
	case errors.As(err, &garbage):
		return rollout.ReasonGarbage
	}
	return rollout.ReasonUnavailable
}

// sample registers job and tries servers until one answers, the job is refused,
// or the retries are used up.
func (f *Fleet) sample(ctx context.Context, job rollout.Job) (rollout.Group, error) {
	if s := job.Sampling; s.Traces < 1 || s.MaxTokens < 1 || len(job.Question.Messages) == 0 {
		return rollout.Group{}, &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonRefused,
			Err: fmt.Errorf("%d traces of at most %d tokens about %d messages", s.Traces, s.MaxTokens, len(job.Question.Messages))}
	}
	if err := f.register(ctx, job); err != nil {
		return rollout.Group{}, err
	}
	defer f.update(func() { f.dequeue(job.Policy) })
	tried, moves := map[*server]bool{}, 0
	for try := 0; ; try++ {
		group, s, err := f.try(ctx, job, attempt{try, tried, moves > 0})
		if err == nil || ctx.Err() != nil || f.ctx.Err() != nil {
			return group, err
		}
		if errors.Is(err, errSlow) { // no failure: it is merely better off elsewhere
			tried[s] = true
			moves++
			continue
		}
		var dropped *rollout.Dropped
		if s == nil || errors.As(err, &dropped) || reasonOf(err) == rollout.ReasonRefused {
			return group, err
		}
		tried[s] = true
		if try >= f.options.Retries+moves {
			return group, fmt.Errorf("try %d of %d: %w", try+1, f.options.Retries+moves+1, err)
		}
		f.options.Log.Warn("job failed on a server", "job", job.ID, "server", s.id, "try", try+1, "error", err)
	}
}

// register waits until the policy of job is the one last offered and queues the
// job under it. An older job is stale: its weights are gone.
func (f *Fleet) register(ctx context.Context, job rollout.Job) error {
	err := f.await(ctx, func(time.Time) verdict {
		switch {
		case f.offer == nil || f.offer.Policy.Older(job.Policy):
			return verdict{}
		case f.offer.Policy != job.Policy:
			return verdict{err: &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonStale,
				Err: fmt.Errorf("policy %s was offered, the job wants %s", f.offer.Policy, job.Policy)}}
		}
		f.queued[job.Policy]++
		return verdict{done: true}
	})
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("waiting for policy %s to be offered: %w", job.Policy, err)
	}
	return err
}

// dequeue must be called under the lock.
func (f *Fleet) dequeue(policy rollout.Policy) {
	if f.queued[policy]--; f.queued[policy] <= 0 {
		delete(f.queued, policy)
	}
}

// attempt is what happened to a job before it is tried.
type attempt struct {
	number int              // from 0
	tried  map[*server]bool // servers that failed it or were too slow
	moved  bool             // it was taken off a slow server
}

// try runs job once on the best server. The server is nil if none was found.
func (f *Fleet) try(ctx context.Context, job rollout.Job, a attempt) (rollout.Group, *server, error) {
	s, trip, ctx, err := f.claim(ctx, job, a)
	if err != nil {
		return rollout.Group{}, nil, err
	}
	defer trip.cancel(nil)
	started := time.Now()
	group, err := f.ask(ctx, s, job, a.number)
	finished := time.Now()
	f.update(func() {
		delete(s.flights, trip)
		s.load -= trip.tokens
		f.queued[job.Policy]++
		group.PolicySent = job.Policy
		if s.live != nil {
			group.PolicyReceived = *s.live
		}
		group.Started, group.Finished = started, finished
		if err == nil {
			err = group.Check(job)
		}
		if err = asGarbage(s, err); err == nil {
			s.succeed()
		} else if f.blames(ctx, err) {
			s.strike(finished, f.options.Quarantine)
		}
	})
	if err != nil {
		return rollout.Group{}, s, err
	}
	return group, s, nil
}

// ask builds the request for s and sends it. What fails before a byte was sent
// is no fault of the server's and is not tried again.
func (f *Fleet) ask(ctx context.Context, s *server, job rollout.Job, try int) (rollout.Group, error) {
	body, err := buildBody(ctx, f.options, s.model, job, fmt.Sprintf("%s-%d", job.ID, try))
	if err != nil {
		if ctx.Err() != nil {
			return rollout.Group{}, err
		}
		return rollout.Group{}, &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonUnavailable, Err: err}
	}
	return s.sample(ctx, body, job)
}

// asGarbage turns a drop for garbage into an error of the server's, so that the
// job is tried elsewhere.
func asGarbage(s *server, err error) error {
	var dropped *rollout.Dropped
	if errors.As(err, &dropped) && dropped.Reason == rollout.ReasonGarbage {
		return &GarbageError{s.id, dropped.Err}
	}
	return err
}

// blames says whether err is the server's fault: not a refused request, not a
// caller that left, not a job that could not be built or was dropped for what
// it is. It must be called under the lock.
func (f *Fleet) blames(ctx context.Context, err error) bool {
	var dropped *rollout.Dropped
	if errors.As(err, &dropped) || reasonOf(err) == rollout.ReasonRefused {
		return false
	}
	if ctx.Err() == nil {
		return true
	}
	why := context.Cause(ctx)
	return errors.Is(why, errDead) || errors.Is(why, errHung)
}

// claim waits for a server that serves the job's policy and has room, and puts
// the job on the least loaded one. The returned context ends with ctx, with the
// fleet, or when the server is given up.
func (f *Fleet) claim(ctx context.Context, job rollout.Job, a attempt) (*server, *flight, context.Context, error) {
	var chosen *server
	progress := func() { rollout.Progress(ctx) }
	trip := &flight{tokens: job.Sampling.Traces * job.Sampling.MaxTokens, moved: a.moved, progress: progress}
	hopeless := time.Time{} // since when no server could ever serve the job
	var place *ticket
	f.update(func() { place = f.enter(job.Policy, a.number == 0, progress) })
	defer f.update(func() { f.leave(place) })
	err := f.await(ctx, func(now time.Time) verdict {
		best, wake := f.pick(job.Policy, a.tried, now)
		if best != nil && !f.first(place) {
			return verdict{} // whoever is first takes it, and wakes us
		}
		if best != nil {
			chosen = best
			if len(best.flights) == 0 {
				best.progressed = now
			}
			best.flights[trip] = true
			progress()
			best.load += trip.tokens
			f.dequeue(job.Policy)
			return verdict{done: true}
		}
		hope, passed := f.hope(job.Policy)
		switch {
		case passed:
			return verdict{err: &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonStale,
				Err: fmt.Errorf("no server is left that holds policy %s: %s", job.Policy, f.describe())}}
		case hope:
			hopeless = time.Time{}
			return verdict{at: wake}
		case hopeless.IsZero():
			hopeless = now
		case now.Sub(hopeless) >= f.options.Patience:
			return verdict{err: &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonUnavailable,
				Err: fmt.Errorf("no server could serve policy %s for %s: %s", job.Policy, f.options.Patience, f.describe())}}
		}
		return verdict{at: hopeless.Add(f.options.Patience)}
	})
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("waiting for a server: %w", err)
		}
		return nil, nil, nil, err
	}
	tripCtx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(f.ctx, func() { cancel(ErrClosed) })
	release := func(reason error) { stop(); cancel(reason) }
	f.mu.Lock()
	trip.cancel = release
	gone := !chosen.serves(job.Policy)
	f.mu.Unlock()
	if gone {
		release(errDead) // it was given up between the claim and now
	}
	return chosen, trip, tripCtx, nil
}

// pick chooses the server for a job of policy: not quarantined, with room, one
// that has not failed the job yet before one that has, healthy before slow, then
// the least loaded. wake is when a quarantine that stands in the way ends.
func (f *Fleet) pick(policy rollout.Policy, tried map[*server]bool, now time.Time) (best *server, wake time.Time) {
	worse := func(s *server) int {
		rank := 0
		if tried[s] {
			rank += 2
		}
		if s.state == StateSlow {
			rank++
		}
		return rank
	}
	for _, s := range f.servers {
		switch {
		case !s.serves(policy) || len(s.flights) >= f.room(s):
		case s.state == StateSlow && tried[s] && f.another(s, policy): // it came from here
		case now.Before(s.until):
			if wake.IsZero() || s.until.Before(wake) {
				wake = s.until
			}
		case best == nil, worse(s) < worse(best), worse(s) == worse(best) && s.load < best.load:
			best = s
		}
	}
	return best, wake
}

// hope says whether a server serves policy or is about to, and whether policy
// has passed: a later one was offered and nobody holds this one any more.
func (f *Fleet) hope(policy rollout.Policy) (hope, passed bool) {
	current := f.offer != nil && f.offer.Policy == policy
	holds := false
	for _, s := range f.servers {
		holds = holds || s.live != nil && *s.live == policy
		hope = hope || s.serves(policy) || current && s.state == StateAdopting
	}
	hope = hope || current && len(f.adopting) > 0
	return hope, !current && !holds
}
