package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/rollout"
)

// sampler walks through the policy versions. At each it waits for the weights,
// makes them live where they are needed, evaluates them beside the rollouts
// when that is due, and samples every batch that is theirs before it goes on:
// so no policy is replaced while a job of it is left.
func (r *ring) sampler(ctx context.Context) error {
	defer r.board.update(func() { r.board.samplerDone = true })
	defer close(r.batches)
	for v := r.at.step; v <= r.stage.Steps; v++ {
		on, err := r.enter(ctx, v)
		if err != nil || !on {
			return err
		}
		if on, err = r.serve(ctx, v); err != nil || !on {
			return err
		}
	}
	return nil
}

// enter waits until version v is published, and frees the slots of the steps
// behind it. It says false when the stage stops before v is needed.
func (r *ring) enter(ctx context.Context, v int) (bool, error) {
	b := r.board
	over := func() bool { return b.over(r.stage.Steps) }
	err := b.wait(ctx, func() bool {
		_, published := b.offers[v]
		return published || over()
	})
	if err != nil {
		return false, err
	}
	on := false
	b.update(func() {
		if on = !over(); on {
			b.entered = v
			delete(b.offers, v-1)
		}
	})
	if on {
		r.slots.live(v)
	}
	return on, nil
}

// serve does all that version v is for. It says false when the stage stops.
func (r *ring) serve(ctx context.Context, v int) (bool, error) {
	hands := newCrew(ctx)
	if r.evaluationDue(v) {
		if err := r.adopt(ctx, v); err != nil {
			return false, err
		}
		hands.run(func(ctx context.Context) error { return r.evaluate(ctx, v) })
	}
	on := true
	first := v + 1 + r.o.RL.MaxStaleness
	if v == r.at.step {
		first = v + 1
	}
	hands.run(func(ctx context.Context) error {
		for n := first; n <= min(v+1+r.o.RL.MaxStaleness, r.stage.Steps) && on; n++ {
			if on = r.board.beginSampling(n); !on {
				return nil
			}
			if err := r.provide(ctx, n, v); err != nil {
				return err
			}
		}
		return nil
	})
	if err := hands.wait(); err != nil {
		return false, err
	}
	r.board.update(func() { r.board.evaluated = v })
	return on, nil
}

// provide hands batch n to the learner: the recorded one if there is one,
// otherwise sampled by version v and made durable first. (Where a finished stage
// was given more steps, v is younger than v(n): nothing older is left.)
func (r *ring) provide(ctx context.Context, n, v int) error {
	b, err := r.recorded(ctx, n)
	switch {
	case err == nil:
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case r.version(n) != v && n <= r.ahead():
		return &ResumeError{Point: r.start.dir, Err: fmt.Errorf(
			"stage %s step %d was sampled by version %d, older than the checkpoint, and its rollout batch is gone", r.stage.Name, n, r.version(n))}
	default:
		if b, err = r.fresh(ctx, n, v); err != nil {
			return err
		}
	}
	r.sum.cursor = b.cursor
	if n > r.ahead() {
		r.sum.admitted += b.admitted
		r.sum.dropped += len(b.drops)
		r.sum.refills += b.refills
	}
	end := r.sum
	end.groups = b.trainable()
	r.board.update(func() {
		r.board.ends[n] = end
		r.board.durable = n
	})
	select {
	case r.batches <- b:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fresh samples batch n by version v, makes it durable and tells the fleet.
func (r *ring) fresh(ctx context.Context, n, v int) (*rolloutBatch, error) {
	if err := r.adopt(ctx, v); err != nil {
		return nil, err
	}
	b, err := r.sampleBatch(ctx, n, r.live)
	if err != nil {
		return nil, err
	}
	if len(b.groups) == 0 {
		return nil, &EmptyStepError{Stage: r.stage.Name, Step: n, Admitted: b.admitted, Reasons: b.reasons()}
	}
	if len(b.groups) < r.stage.Batch {
		r.alarm(n, "short_step", "step trains %d of %d questions, dropped %v", len(b.groups), r.stage.Batch, b.reasons())
	}
	started := r.now()
	meta, groups, err := b.encode(r.o.Seed, r.stage.Name)
	if err != nil {
		return nil, err
	}
	err = bounded(ctx, await{fmt.Sprintf("rollout batch of step %d, write", r.global(n)), r.o.Limits.Store, "the disk of the run directory"},
		func(ctx context.Context) error { return r.o.Parts.Store.PutRollout(ctx, r.global(n), meta, groups) })
	if err != nil {
		return nil, err
	}
	b.timing.store = r.now().Sub(started)
	// Only now may the fleet forget: a crash before this line finds the traces
	// again by sampling the same jobs, a crash after it in the durable batch.
	err = bounded(ctx, await{fmt.Sprintf("fleet, commit of step %d", r.global(n)), r.o.Limits.Commit, "the bus"},
		func(ctx context.Context) error { return r.o.Parts.Fleet.Commit(ctx, b.jobs()) })
	return b, err
}

// recorded reads batch n back, if an earlier execution made it durable, and
// moves source, slots and books as if it had just been sampled.
func (r *ring) recorded(ctx context.Context, n int) (*rolloutBatch, error) {
	var b *rolloutBatch
	err := bounded(ctx, await{fmt.Sprintf("rollout batch of step %d, read", r.global(n)), r.o.Limits.Store, "the disk of the run directory"},
		func(ctx context.Context) error {
			meta, groups, err := r.o.Parts.Store.Rollout(ctx, r.global(n))
			if err != nil {
				return err
			}
			b, err = decodeBatch(meta, groups, want{seed: r.o.Seed, stage: r.stage.Name, step: n, version: r.version(n)})
			return err
		})
	if err != nil {
		return nil, err
	}
	for range b.groups {
		if err := r.slots.charge(ctx, n); err != nil {
			return nil, fmt.Errorf("slot for step %d: %w", n, err)
		}
	}
	if n > r.ahead() {
		r.books.admit(b.admitted)
		r.books.drop(len(b.drops))
	}
	if err := r.stage.Source.Restore(b.cursor); err != nil {
		return nil, fmt.Errorf("source position after step %d: %w", n, err)
	}
	return b, nil
}

// adopt makes version v live, unless it is.
func (r *ring) adopt(ctx context.Context, v int) error {
	offer := r.board.offer(v)
	if r.live == offer.Policy {
		return nil
	}
	var adopted rollout.Adopted
	err := bounded(ctx, await{fmt.Sprintf("policy %s, adoption by the fleet", offer.Policy), r.o.Limits.Adopt, "the servers' logs"},
		func(ctx context.Context) (err error) {
			adopted, err = r.o.Parts.Fleet.Adopt(ctx, offer)
			return err
		})
	if err != nil {
		return err
	}
	r.live = offer.Policy
	failed := 0
	for _, s := range adopted.Servers {
		if s.Err != "" {
			failed++
		}
	}
	r.emit(telemetry.PolicyAdopted{Policy: offer.Policy.String(), Servers: len(adopted.Servers), Failed: failed, Seconds: adopted.Seconds})
	return nil
}
