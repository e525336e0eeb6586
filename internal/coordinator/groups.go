package coordinator

import (
	"fmt"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// example is a group as the trainer sees it, beside where it came from.
type example struct {
	*scored
	kept  []int // [G'] indices of the traces that are trained, ascending
	group trainer.Group
	// What Score said of the kept traces, [G'][T]; nil when it was skipped.
	old, reference, entropy [][]float32
}

// update is one optimizer update of a step: a run of whole groups.
type update struct {
	number   int // of the run, from 1
	examples []*example
	plan     trainer.Plan
	rate     float64
	report   trainer.Report
	bad      error // why it was refused; nil when it was applied
}

// example leaves the empty and the aborted traces of g out.
func (r *ring) example(g *scored) *example {
	e := &example{scored: g, group: trainer.Group{
		ID: string(g.Job.ID), Prompt: g.group.PromptTokens, Images: g.Job.Question.Images(),
	}}
	for i, t := range g.group.Traces {
		if t.Finish == rollout.FinishAbort || len(t.Tokens) == 0 {
			continue
		}
		s := trainer.Sequence{Tokens: t.Tokens, RolloutLogprobs: t.Logprobs}
		if r.o.RL.MaskTruncated && t.Finish == rollout.FinishLength {
			s.Mask = make([]bool, len(t.Tokens))
		}
		e.kept = append(e.kept, i)
		e.group.Traces = append(e.group.Traces, s)
	}
	return e
}

// split cuts the groups of b, in job order, into the updates of its step: whole
// groups, sizes that differ by at most one.
func (r *ring) split(b *rolloutBatch) []*update {
	count := min(r.o.RL.Updates, len(b.groups))
	updates := make([]*update, count)
	for j := range updates {
		u := &update{}
		for i := j * len(b.groups) / count; i < (j+1)*len(b.groups)/count; i++ {
			u.examples = append(u.examples, r.example(&b.groups[i]))
		}
		updates[j] = u
	}
	return updates
}

// batch returns what the trainer loads for u, with a fresh plan.
func (u *update) batch(planner func([]trainer.Group) (trainer.Plan, error)) (trainer.Batch, error) {
	groups := make([]trainer.Group, len(u.examples))
	for i, e := range u.examples {
		groups[i] = e.group
	}
	plan, err := planner(groups)
	if err != nil {
		return trainer.Batch{}, fmt.Errorf("plan of update %d: %w", u.number, err)
	}
	u.plan = plan
	return trainer.Batch{Step: u.number, Groups: groups, Plan: plan}, nil
}

// refuse removes the group called id and says whether it was there.
func (u *update) refuse(id string) *example {
	for i, e := range u.examples {
		if e.group.ID == id {
			u.examples = append(u.examples[:i:i], u.examples[i+1:]...)
			return e
		}
	}
	return nil
}

// denominators are those of groups for which counts says true. Both sums are at
// least 1: an update whose groups all have A = 0 may count none, and 0 divided
// by 1 is the loss that is meant.
func denominators(groups []trainer.Group, maxTokens int, counts func(i int) bool) trainer.Denominators {
	d := trainer.CountDenominators(groups, maxTokens, counts)
	d.Tokens, d.Sequences = max(d.Tokens, 1), max(d.Sequences, 1)
	return d
}
