package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/uadt-train/uadt-train/internal/coordinator"
	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/vllm"
)

// asker asks questions of servers that nobody trains, and scores the answers.
type asker struct {
	fleet  *vllm.Fleet
	policy rollout.Policy
	scorer reward.Scorer
	limit  int // questions at a time
}

// newAsker reaches servers with the weights that they hold. They must answer at
// once, or, where o has a StartTimeout, by its end.
func newAsker(ctx context.Context, o vllm.Options, scorer reward.Scorer) (*asker, error) {
	const concurrency = 64
	servers := o.Servers
	if o.StartTimeout == 0 {
		if err := probeServers(ctx, servers); err != nil {
			return nil, &unreachableError{"the servers", err}
		}
		o.StartTimeout = serverPatience
	}
	o.Concurrency, o.Quorum = concurrency, len(servers)
	fleet, err := vllm.NewFleet(o)
	if err != nil {
		return nil, err
	}
	a := &asker{fleet: fleet, policy: rollout.Policy{Incarnation: 1, Digest: "as served"}, scorer: scorer, limit: concurrency * len(servers)}
	if _, err := fleet.Adopt(ctx, rollout.Offer{Policy: a.policy, Transport: rollout.AsServed}); err != nil {
		return nil, errors.Join(&unreachableError{"the servers", err}, fleet.Close())
	}
	return a, nil
}

// answered is one question with its group and the scores of its traces.
type answered struct {
	question rollout.Question
	group    rollout.Group
	scores   []reward.Score
	dropped  *rollout.Dropped // set when it was not answered
}

// ask asks every question once; seed gives each its own draw. done is called
// from several goroutines as answers come in.
func (a *asker) ask(ctx context.Context, questions []rollout.Question, sampling rollout.Sampling, seed func(rollout.Question) int64, done func(int, answered) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(a.limit)
	for i, q := range questions {
		group.Go(func() error {
			s := sampling
			s.Seed = seed(q)
			job := rollout.Job{ID: rollout.JobID(fmt.Sprintf("ask-%d", i)), Question: q, Policy: a.policy, Sampling: s, Purpose: rollout.Eval}
			one, err := a.one(ctx, job)
			if err != nil {
				return err
			}
			return done(i, one)
		})
	}
	return group.Wait()
}

func (a *asker) one(ctx context.Context, job rollout.Job) (answered, error) {
	out := answered{question: job.Question}
	group, err := a.fleet.Sample(ctx, job)
	if errors.As(err, &out.dropped) {
		return out, nil
	}
	if err != nil {
		return out, err
	}
	out.group = group
	for _, t := range group.Traces {
		score, err := a.scorer.Score(ctx, job.Question, t)
		if err != nil {
			return out, fmt.Errorf("question %s: %w", job.Question.ID, err)
		}
		out.scores = append(out.scores, score)
	}
	return out, nil
}

// accuracy is the share of scored traces that are right, and the share of
// questions with a right trace. ok is false when nothing was scored.
func accuracy(answers []answered) (mean, passk float64, ok bool) {
	scored, right, questions, solved := 0, 0, 0, 0
	for _, a := range answers {
		if a.dropped != nil {
			continue
		}
		questions++
		any := 0
		for _, s := range a.scores {
			if s.Missing {
				continue
			}
			scored++
			if s.Correct {
				right++
				any = 1
			}
		}
		solved += any
	}
	if scored == 0 {
		return 0, 0, false
	}
	return float64(right) / float64(scored), float64(solved) / float64(questions), true
}

// baseStage names the evaluation of the checkpoint that a recipe starts from.
const baseStage = "base"

// measureBase evaluates the model before anything is trained, so that a run can
// say what its stages brought.
func (r *running) measureBase(ctx context.Context, o coordinator.Options) (err error) {
	if len(o.Eval.Questions) == 0 || len(r.config.Rollout.Servers) > 0 {
		return nil
	}
	var undo closers
	defer func() { err = errors.Join(err, undo.close()) }()
	url, err := r.startServer(ctx, r.config.Model.Path, &undo)
	if err != nil {
		return err
	}
	a, err := newAsker(ctx, vllm.Options{Servers: []string{url}, Images: r.images, Log: quiet(r.log)}, o.Parts.Scorer)
	if err != nil {
		return err
	}
	undo.add(a.fleet.Close)
	values := map[string]any{"stage": baseStage, "policy_version": int64(0), "time": r.m.Now().UTC().Format(time.RFC3339Nano)}
	for _, way := range []struct {
		name, passk string
		sampling    rollout.Sampling
	}{{"accuracy/eval", "accuracy/eval_passk", sampled(o)}, {"accuracy/eval_greedy", "", greedy(o)}} {
		answers := make([]answered, len(o.Eval.Questions))
		seed := func(q rollout.Question) int64 { return rollout.BaseSeed(o.Seed, baseStage+"/"+way.name, q.ID, 0, 0) }
		if err := a.ask(ctx, o.Eval.Questions, way.sampling, seed, func(i int, one answered) error {
			answers[i] = one
			return nil
		}); err != nil {
			return err
		}
		if mean, passk, ok := accuracy(answers); ok {
			values[way.name] = mean
			if way.passk != "" {
				values[way.passk] = passk
			}
		}
	}
	return r.run.PutMetrics(ctx, "eval", 0, values)
}

func sampled(o coordinator.Options) rollout.Sampling {
	s := o.RL.Sampling
	s.Traces = o.Eval.Samples
	return s
}

func greedy(o coordinator.Options) rollout.Sampling {
	s := o.RL.Sampling
	s.Traces, s.Temperature = 1, 0
	return s
}
