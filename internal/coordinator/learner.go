package coordinator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/uadt"
)

// learned is one trained step: what metrics and ledger are made of.
type learned struct {
	batch   *rolloutBatch
	updates []*update
	refused []drop
	shaped  uadt.Result
	seconds map[string]float64 // by phase
}

// examples lists the trained groups of l in job order, as in shaped.Groups.
func (l *learned) examples() []*example {
	var all []*example
	for _, u := range l.updates {
		all = append(all, u.examples...)
	}
	return all
}

// learner trains the batches in order and brings each step's weights out.
func (r *ring) learner(ctx context.Context) error {
	r.lineAt = r.now()
	for {
		b, err := r.next(ctx)
		if err != nil {
			return err
		}
		if b == nil || !r.board.beginTraining(b.step) {
			break
		}
		if err := r.step(ctx, b); err != nil {
			return err
		}
	}
	if err := r.save(ctx); err != nil {
		return err
	}
	return r.saver.wait(ctx)
}

// next returns the next batch, nil when there is none.
func (r *ring) next(ctx context.Context) (*rolloutBatch, error) {
	select {
	case b := <-r.batches:
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// step trains b, publishes the weights, writes ledger and metrics, and takes a
// checkpoint when one is due.
func (r *ring) step(ctx context.Context, b *rolloutBatch) error {
	l, err := r.train(ctx, b)
	if err != nil {
		return err
	}
	r.done = b.step
	started := r.now()
	if err := r.publish(ctx, b.step); err != nil {
		return err
	}
	l.seconds["publish"] = r.now().Sub(started).Seconds()
	if err := r.record(ctx, l); err != nil {
		return err
	}
	if r.badSteps >= r.o.MaxBadSteps {
		return &BadStepsError{Count: r.badSteps, Last: l.updates[len(l.updates)-1].bad}
	}
	if r.global(b.step)%r.o.CheckpointEvery == 0 || b.step == r.stage.Steps {
		return r.save(ctx)
	}
	return nil
}

// train executes the updates of b: all loaded and scored under the weights of
// the batch's start, shaped together, then stepped one after the other.
func (r *ring) train(ctx context.Context, b *rolloutBatch) (*learned, error) {
	l := &learned{batch: b, seconds: map[string]float64{
		"rollout": b.timing.rollout.Seconds(), "reward": b.timing.reward.Seconds(),
	}}
	for _, phase := range []struct {
		name string
		run  func(context.Context, *learned) error
	}{{"pack", r.load}, {"score", r.scoreAll}, {"shape", r.shape}, {"train", r.apply}} {
		started := r.now()
		if err := phase.run(ctx, l); err != nil {
			return nil, fmt.Errorf("stage %s step %d: %w", r.stage.Name, b.step, err)
		}
		l.seconds[phase.name] = r.now().Sub(started).Seconds()
	}
	r.trained += len(l.examples())
	r.books.train(len(l.examples()))
	_, err := r.books.counts()
	return l, err
}

// load brings every update to the trainer. A group that the trainer refuses by
// name is dropped, and its update loaded again without it.
func (r *ring) load(ctx context.Context, l *learned) error {
	next := r.update + 1
	for _, u := range r.split(l.batch) {
		u.number = next
		if err := r.loadUpdate(ctx, l, u); err != nil {
			return err
		}
		if len(u.examples) > 0 {
			l.updates = append(l.updates, u)
			next++
		}
	}
	if len(l.updates) == 0 {
		return &EmptyStepError{Stage: r.stage.Name, Step: l.batch.step, Admitted: l.batch.admitted,
			Reasons: map[string]int{string(rollout.ReasonEncoding): len(l.refused)}}
	}
	return nil
}

func (r *ring) loadUpdate(ctx context.Context, l *learned, u *update) error {
	for len(u.examples) > 0 {
		batch, err := u.batch(r.o.Parts.Plan)
		if err == nil {
			err = bounded(ctx, await{fmt.Sprintf("trainer, load of update %d", u.number), r.o.Limits.Load, "the trainer's log"},
				func(ctx context.Context) error { return r.o.Parts.Backend.Load(ctx, batch) })
		}
		var refusal *trainer.GroupError
		if !errors.As(err, &refusal) {
			return err
		}
		e := u.refuse(refusal.Group)
		if e == nil {
			return fmt.Errorf("trainer refuses a group that update %d does not have: %w", u.number, err)
		}
		l.refused = append(l.refused, drop{Job: e.Job.ID, Reason: rollout.ReasonEncoding, Error: refusal.Error()})
		r.refused++
		r.books.drop(1)
		r.emit(telemetry.GroupDropped{Job: refusal.Group, Reason: string(rollout.ReasonEncoding), Err: refusal.Err})
	}
	return nil
}

// needsScore says whether the trainer's own log-probabilities or entropies are
// needed before the step: for exact entropy, for KL, or because more than one
// update makes "old" differ from what is trained.
func (r *ring) needsScore() bool {
	rl := r.o.RL
	return rl.UADT.Entropy == uadt.Exact || rl.Loss.KL.Kind != trainer.KLOff || rl.RewardKL > 0 || rl.Updates > 1
}

func (r *ring) scoreAll(ctx context.Context, l *learned) error {
	if !r.needsScore() {
		return nil
	}
	options := trainer.ScoreOptions{Temperature: r.o.RL.Sampling.Temperature, Banned: r.o.RL.Sampling.Banned}
	for _, u := range l.updates {
		var scores trainer.Scores
		err := bounded(ctx, await{fmt.Sprintf("trainer, score of update %d", u.number), r.o.Limits.Train, "the trainer's log"},
			func(ctx context.Context) (err error) {
				scores, err = r.o.Parts.Backend.Score(ctx, u.number, options)
				return err
			})
		if err != nil {
			return err
		}
		if err := r.take(u, scores); err != nil {
			return fmt.Errorf("scores of update %d: %w", u.number, err)
		}
	}
	return nil
}

// take hands the scores to the examples of u after checking every shape.
func (r *ring) take(u *update, s trainer.Scores) error {
	reference := r.o.RL.Loss.KL.Kind != trainer.KLOff || r.o.RL.RewardKL > 0
	for _, a := range []struct {
		name   string
		values [][][]float32
		needed bool
	}{{"old", s.Old, true}, {"entropy", s.Entropy, true}, {"reference", s.Reference, reference}} {
		if !a.needed {
			continue
		}
		if err := checkShape(u, a.values); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
	}
	for q, e := range u.examples {
		e.old, e.entropy = s.Old[q], s.Entropy[q]
		if reference {
			e.reference = s.Reference[q]
		}
	}
	return nil
}

func checkShape(u *update, values [][][]float32) error {
	if len(values) != len(u.examples) {
		return fmt.Errorf("%d groups, want %d", len(values), len(u.examples))
	}
	for q, e := range u.examples {
		if len(values[q]) != len(e.group.Traces) {
			return fmt.Errorf("group %s: %d traces, want %d", e.group.ID, len(values[q]), len(e.group.Traces))
		}
		for i, s := range e.group.Traces {
			if len(values[q][i]) != len(s.Tokens) {
				return fmt.Errorf("group %s trace %d: %d tokens, want %d", e.group.ID, e.kept[i], len(values[q][i]), len(s.Tokens))
			}
		}
	}
	return nil
}

// apply steps the updates in order. A refused one counts as done.
func (r *ring) apply(ctx context.Context, l *learned) error {
	values := l.shaped.Values()
	total := r.stage.Steps * r.o.RL.Updates
	first := 0 // index of the update's first group in values
	for j, u := range l.updates {
		u.rate = r.stage.rate((l.batch.step-1)*r.o.RL.Updates+j, total)
		advantages := trainer.Advantages{Options: r.stepOptions(l, u, first)}
		for q, e := range u.examples {
			rows := make([][]float32, len(e.kept))
			for i, k := range e.kept {
				rows[i] = values[first+q][k]
			}
			advantages.Values = append(advantages.Values, rows)
		}
		first += len(u.examples)
		err := bounded(ctx, await{fmt.Sprintf("trainer, update %d", u.number), r.o.Limits.Train, "the trainer's log"},
			func(ctx context.Context) (err error) {
				u.report, err = r.o.Parts.Backend.Step(ctx, u.number, advantages)
				return err
			})
		if err := r.took(l, u, err); err != nil {
			return err
		}
	}
	return nil
}

// took books an update that was applied or refused.
func (r *ring) took(l *learned, u *update, err error) error {
	var bad *trainer.BadStepError
	switch {
	case err == nil:
		r.badSteps = 0
	case errors.As(err, &bad):
		u.bad = bad
		r.badSteps++
		r.alarm(l.batch.step, "bad_step", "%v", bad)
	default:
		return err
	}
	r.update = u.number
	return nil
}

func (r *ring) stepOptions(l *learned, u *update, first int) trainer.StepOptions {
	o := r.o.RL.Loss
	o.LearningRate, o.GradClip = u.rate, r.stage.GradClip
	o.Temperature, o.Banned = r.o.RL.Sampling.Temperature, r.o.RL.Sampling.Banned
	groups := make([]trainer.Group, len(u.examples))
	for i, e := range u.examples {
		groups[i] = e.group
	}
	o.Denominators = denominators(groups, r.o.RL.Sampling.MaxTokens, func(i int) bool {
		return !r.o.RL.InformativeOnly || l.shaped.Groups[first+i].Informative
	})
	return o
}

// since is the time from one line of metrics to the next.
func (r *ring) since() time.Duration {
	now := r.now()
	d := now.Sub(r.lineAt)
	r.lineAt = now
	return d
}
