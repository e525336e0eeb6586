package coordinator

import (
	"context"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/uadt"
)

// shape turns rewards and entropies of the whole rollout batch into advantages.
func (r *ring) shape(_ context.Context, l *learned) error {
	examples := l.examples()
	batch := uadt.Batch{Groups: make([]uadt.Group, len(examples))}
	for q, e := range examples {
		batch.Groups[q] = r.shaperGroup(e)
	}
	shaped, err := r.shaper.Shape(batch)
	if err != nil {
		return err
	}
	l.shaped = shaped
	for _, a := range shaped.Alarms {
		r.alarm(l.batch.step, a.Name, "%s", a.Message)
	}
	r.rewardAlarms(l)
	return nil
}

// shaperGroup is e as the shaper sees it: all traces, lost ones included.
func (r *ring) shaperGroup(e *example) uadt.Group {
	g := uadt.Group{ID: string(e.Job.ID), Traces: make([]uadt.Trace, len(e.Scores))}
	for i, t := range e.scored.group.Traces {
		g.Traces[i] = uadt.Trace{
			Reward:    e.Scores[i].Total,
			Missing:   e.Scores[i].Missing,
			Correct:   e.Scores[i].Correct,
			Truncated: t.Finish == rollout.FinishLength,
			Aborted:   t.Finish == rollout.FinishAbort,
			Length:    len(t.Tokens),
		}
	}
	for i, k := range e.kept {
		t := &g.Traces[k]
		t.Entropies = r.signal(e, i)
		if r.o.RL.UADT.Span == uadt.SpanThink {
			t.Span = span(len(t.Entropies), r.o.RL.Think, e.group.Traces[i].Tokens)
		}
		if r.o.RL.RewardKL > 0 {
			t.Penalty = r.o.RL.RewardKL * divergence(e.old[i], e.reference[i])
		}
	}
	return g
}

// signal returns the per-token entropy of kept trace i by the run's estimator.
func (r *ring) signal(e *example, i int) []float32 {
	trace := e.scored.group.Traces[e.kept[i]]
	switch estimator := r.o.RL.UADT.Entropy; {
	case estimator == uadt.Exact:
		return e.entropy[i]
	case estimator.K() > 0:
		return trace.TopKEntropy
	}
	return uadt.Surprisals(trace.Logprobs)
}

func span(length int, think func([]int32) (int, int), tokens []int32) []bool {
	marks := make([]bool, length)
	from, to := think(tokens)
	for t := max(from, 0); t < min(to, length); t++ {
		marks[t] = true
	}
	return marks
}

// divergence is sum_t (old - ref), the k1 estimate of KL(old || ref) over the
// trace in nats; float64, because the terms nearly cancel.
func divergence(old, reference []float32) float64 {
	sum := 0.0
	for t := range old {
		sum += float64(old[t]) - float64(reference[t])
	}
	return sum
}

// rewardAlarms raises what no later number would show: a batch that teaches
// nothing because no reward is there, or none is above 0.
func (r *ring) rewardAlarms(l *learned) {
	scored, positive, total := 0, 0, 0
	for _, e := range l.examples() {
		for _, s := range e.Scores {
			total++
			if s.Missing {
				continue
			}
			scored++
			if s.Total > 0 {
				positive++
			}
		}
	}
	switch {
	case scored == 0:
		r.alarm(l.batch.step, "all_missing_reward", "none of %d rewards could be computed", total)
	case positive == 0:
		r.alarm(l.batch.step, "all_zero_reward", "none of %d rewards is above 0", scored)
	}
}
