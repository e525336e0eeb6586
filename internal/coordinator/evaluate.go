package coordinator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/rollout"
)

// evaluationDue says whether version v is to be evaluated: the first, the last,
// and every Every-th between.
func (r *ring) evaluationDue(v int) bool {
	e := r.o.Eval
	if len(e.Questions) == 0 {
		return false
	}
	return v == 0 || v == r.stage.Steps || (e.Every > 0 && v%e.Every == 0)
}

// tally counts the answers of one way of evaluating.
type tally struct {
	scored, correct  int // traces
	questions, right int // questions answered, and those with a right trace
	dropped          int // questions not answered
}

// evaluate asks the questions of the evaluation set under version v, which is
// live and stays so until this returns. Its jobs hold no slot and count in no
// book, and its seeds are its own and the same for every version, so that two
// versions differ by their weights and not by the draw.
func (r *ring) evaluate(ctx context.Context, v int) error {
	sampled := r.o.RL.Sampling
	sampled.Traces = r.o.Eval.Samples
	t, err := r.evaluateWith(ctx, v, "eval", sampled)
	if err != nil {
		return err
	}
	values := telemetry.Metrics{}
	t.put(values, "accuracy/eval")
	if sampled.Traces > 1 && t.questions > 0 {
		values["accuracy/eval_passk"] = float64(t.right) / float64(t.questions)
	}
	if r.o.Eval.Greedy {
		greedy := r.o.RL.Sampling
		greedy.Traces, greedy.Temperature = 1, 0
		g, err := r.evaluateWith(ctx, v, "greedy", greedy)
		if err != nil {
			return err
		}
		g.put(values, "accuracy/eval_greedy")
		t.dropped += g.dropped
	}
	if t.dropped > 0 {
		r.alarm(v, "evaluation_incomplete", "%d evaluation jobs of version %d were dropped", t.dropped, v)
	}
	line := map[string]any{"step": int64(r.global(v)), "stage": r.stage.Name, "policy_version": int64(r.base + v),
		"time": r.now().UTC().Format(time.RFC3339Nano)}
	err = r.putMetrics(ctx, "eval", v, line, values)
	r.emit(telemetry.Evaluated{Stage: r.stage.Name, Global: r.global(v), Metrics: values})
	return err
}

func (t tally) put(values telemetry.Metrics, name string) {
	if t.scored > 0 {
		values[name] = float64(t.correct) / float64(t.scored)
	}
}

// evaluateWith asks every question once with sampling.
func (r *ring) evaluateWith(ctx context.Context, v int, way string, sampling rollout.Sampling) (tally, error) {
	hands := newCrew(ctx)
	tallies := make([]tally, len(r.o.Eval.Questions))
	for i, q := range r.o.Eval.Questions {
		s := sampling
		s.Seed = rollout.BaseSeed(r.o.Seed, r.stage.Name+"/"+way, q.ID, 0, 0)
		job := rollout.Job{
			ID:    rollout.JobID(fmt.Sprintf("%s-%s-%d-%d", r.stage.Name, way, v, i)),
			Stage: r.stage.Name, Step: v, Index: i, Question: q,
			Policy: r.board.offer(v).Policy, Sampling: s, Purpose: rollout.Eval,
		}
		hands.run(func(ctx context.Context) (err error) {
			tallies[i], err = r.evaluateJob(ctx, job)
			return err
		})
	}
	if err := hands.wait(); err != nil {
		return tally{}, err
	}
	var total tally
	for _, t := range tallies {
		total.scored += t.scored
		total.correct += t.correct
		total.questions += t.questions
		total.right += t.right
		total.dropped += t.dropped
	}
	return total, nil
}

func (r *ring) evaluateJob(ctx context.Context, job rollout.Job) (tally, error) {
	group, err := r.ask(ctx, job)
	var dropped *rollout.Dropped
	if errors.As(err, &dropped) {
		return tally{dropped: 1}, nil
	}
	if err != nil {
		return tally{}, err
	}
	scores, err := r.score(ctx, job.Question, group)
	if err != nil {
		return tally{}, err
	}
	t := tally{questions: 1}
	for _, s := range scores {
		if s.Missing {
			continue
		}
		t.scored++
		if s.Correct {
			t.correct++
			t.right = 1
		}
	}
	return t, nil
}
