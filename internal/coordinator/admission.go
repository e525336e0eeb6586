package coordinator

import (
	"context"
	"fmt"

	"github.com/uadt-train/uadt-train/rollout"
)

// admission draws the questions of one batch in cursor order and makes jobs of
// them. A job's seed comes from its draw alone, so it is the same whenever, by
// whom and in whichever incarnation it is sampled.
type admission struct {
	ring   *ring
	step   int
	policy rollout.Policy
	next   int // index of the next job
}

// admit draws one question, charges its slot and returns its job.
func (a *admission) admit(ctx context.Context) (rollout.Job, error) {
	r := a.ring
	if err := r.slots.charge(ctx, a.step); err != nil {
		return rollout.Job{}, fmt.Errorf("slot for step %d: %w", a.step, err)
	}
	question, epoch, err := draw(ctx, r.o, r.stage, a.step)
	if err != nil {
		return rollout.Job{}, err
	}
	sampling := r.o.RL.Sampling
	sampling.Seed = rollout.BaseSeed(r.o.Seed, r.stage.Name, question.ID, epoch, 0)
	sampling.TopLogprobs = r.o.RL.UADT.Entropy.K()
	job := rollout.Job{
		ID:       rollout.JobID(fmt.Sprintf("%s-%d-%d", r.stage.Name, a.step, a.next)),
		Stage:    r.stage.Name,
		Step:     a.step - 1,
		Index:    a.next,
		Epoch:    epoch,
		Question: question,
		Policy:   a.policy,
		Sampling: sampling,
		Purpose:  rollout.Train,
	}
	a.next++
	r.books.admit(1)
	return job, nil
}

// draw takes the next question of a stage's source, within a deadline.
func draw(ctx context.Context, o Options, stage Stage, step int) (question rollout.Question, epoch int, err error) {
	err = bounded(ctx, await{fmt.Sprintf("stage %s step %d, next question", stage.Name, step), o.Limits.Store, "the data and its disk"},
		func(ctx context.Context) error {
			question, epoch, err = stage.Source.Next(ctx)
			return err
		})
	return question, epoch, err
}
