package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/rollout"
)

// outcome is how one job ended: scored, or dropped, or err for both are over.
type outcome struct {
	index  int
	scored scored
	drop   *drop
	reward time.Duration
	err    error
}

// sampleBatch samples batch n with policy: the stage's Batch questions, and for
// every dropped one the next question until the refills are used up. Which
// questions are drawn depends on how many are dropped and not on when, and the
// batch is in job order: so timing leaves no trace in it.
func (r *ring) sampleBatch(ctx context.Context, n int, policy rollout.Policy) (*rolloutBatch, error) {
	started := r.now()
	hands := newCrew(ctx)
	outcomes := make(chan outcome)
	a := &admission{ring: r, step: n, policy: policy}
	b := &rolloutBatch{step: n, version: policy.Version}
	admit := func() error {
		job, err := a.admit(hands.ctx)
		if err != nil {
			return err
		}
		hands.run(func(ctx context.Context) error {
			select {
			case outcomes <- r.sampleJob(ctx, job):
			case <-ctx.Done():
			}
			return nil
		})
		return nil
	}
	err := r.collect(ctx, b, admit, outcomes)
	if err != nil {
		hands.fail(err)
	}
	if err := hands.wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(b.groups, func(x, y scored) int { return x.Job.Index - y.Job.Index })
	slices.SortFunc(b.drops, func(x, y drop) int { return compareJobs(x.Job, y.Job) })
	b.admitted = a.next
	b.timing.rollout = r.now().Sub(started)
	if b.cursor, err = r.stage.Source.State(); err != nil {
		return nil, fmt.Errorf("stage %s step %d: source position: %w", r.stage.Name, n, err)
	}
	return b, nil
}

// collect admits the questions of b and takes in outcomes until none is due.
func (r *ring) collect(ctx context.Context, b *rolloutBatch, admit func() error, outcomes <-chan outcome) error {
	due := 0
	for range r.stage.Batch {
		if err := admit(); err != nil {
			return err
		}
		due++
	}
	for due > 0 {
		var o outcome
		select {
		case o = <-outcomes:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		due--
		if o.err != nil {
			return o.err
		}
		b.timing.reward += o.reward
		if o.drop == nil {
			b.groups = append(b.groups, o.scored)
		} else {
			b.drops = append(b.drops, *o.drop)
			r.slots.drop(b.step)
			r.books.drop(1)
			if b.refills < r.o.RL.MaxRefill {
				b.refills++
				if err := admit(); err != nil {
					return err
				}
				due++
			}
		}
		r.emit(telemetry.RolloutProgress{Stage: r.stage.Name, Step: b.step,
			Done: len(b.groups), Dropped: len(b.drops), All: r.stage.Batch})
	}
	return nil
}

// compareJobs orders job ids of one step by index: the shorter number first.
func compareJobs(x, y rollout.JobID) int {
	if len(x) != len(y) {
		return len(x) - len(y)
	}
	return slices.Compare([]byte(x), []byte(y))
}

// sampleJob has the fleet answer job, checks the answer and scores it.
func (r *ring) sampleJob(ctx context.Context, job rollout.Job) outcome {
	group, err := r.ask(ctx, job)
	if err == nil {
		o := outcome{index: job.Index, scored: scored{Job: job, group: group}}
		started := r.now()
		o.scored.Scores, err = r.score(ctx, job.Question, group)
		o.reward = r.now().Sub(started)
		if err == nil && r.o.RL.DropZeroVariance && r.zeroVariance(o.scored.Scores) {
			err = &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonZeroVariance}
		}
		if err == nil {
			return o
		}
	}
	var dropped *rollout.Dropped
	if !errors.As(err, &dropped) {
		return outcome{index: job.Index, err: err}
	}
	r.emit(telemetry.GroupDropped{Job: string(job.ID), Reason: string(dropped.Reason), Err: dropped.Err})
	d := &drop{Job: job.ID, Reason: dropped.Reason}
	if dropped.Err != nil {
		d.Error = dropped.Err.Error()
	}
	return outcome{index: job.Index, drop: d}
}

// ask sends job to the fleet once a place is free, within its deadline. It
// fails with a *rollout.Dropped, or with the cause of ctx.
func (r *ring) ask(ctx context.Context, job rollout.Job) (rollout.Group, error) {
	if err := r.atFleet.take(ctx); err != nil {
		return rollout.Group{}, err
	}
	defer r.atFleet.give()
	limit := r.o.Limits.Sample
	job.Deadline = r.now().Add(limit)
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	group, err := r.o.Parts.Fleet.Sample(limited, job)
	if ctx.Err() != nil {
		return rollout.Group{}, context.Cause(ctx)
	}
	var dropped *rollout.Dropped
	switch {
	case err == nil:
		return group, checkGroup(job, group)
	case errors.As(err, &dropped):
		return rollout.Group{}, dropped
	case limited.Err() != nil:
		err = fmt.Errorf("no answer within %s: %w", limit, err)
		return rollout.Group{}, &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonDeadline, Err: err}
	default:
		return rollout.Group{}, &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonUnavailable, Err: err}
	}
}

// checkGroup returns a *rollout.Dropped if group does not answer job. Empty and
// aborted traces are forgiven while two others are left: they are not trained.
func checkGroup(job rollout.Job, group rollout.Group) error {
	lost, wanted := rollout.Reason(""), job
	left := group
	left.Traces = nil
	for _, t := range group.Traces {
		switch {
		case t.Finish == rollout.FinishAbort:
			lost = rollout.ReasonAborted
		case len(t.Tokens) == 0:
			lost = rollout.ReasonEmpty
		default:
			left.Traces = append(left.Traces, t)
			continue
		}
		wanted.Sampling.Traces--
	}
	if wanted.Sampling.Traces < min(2, job.Sampling.Traces) {
		return &rollout.Dropped{Job: job.ID, Reason: lost, Err: fmt.Errorf(
			"%d of %d traces are left", len(left.Traces), job.Sampling.Traces)}
	}
	if err := left.Check(wanted); err != nil {
		return err
	}
	for i, t := range left.Traces {
		for _, id := range job.Sampling.Banned {
			if at := slices.Index(t.Tokens, id); at >= 0 {
				return &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonGarbage, Err: fmt.Errorf(
					"trace %d: token %d is the banned id %d", i, at, id)}
			}
		}
	}
	return nil
}
