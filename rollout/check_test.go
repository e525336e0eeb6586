package rollout_test

import (
	"errors"
	"math"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
)

// answered returns a job and a group that answers it.
func answered() (rollout.Job, rollout.Group) {
	job := rollout.Job{
		ID: "j", Question: rollout.Question{ID: "q"}, Policy: rollout.Policy{Incarnation: 2, Version: 3, Digest: "d"},
		Sampling: rollout.Sampling{Traces: 2, MaxTokens: 3, Seed: 1024, TopLogprobs: 2},
	}
	trace := func() rollout.Trace {
		return rollout.Trace{Tokens: []int32{1, 2}, Logprobs: []float32{-1, 0}, TopKEntropy: []float32{0, 1}}
	}
	return job, rollout.Group{
		Job: "j", QuestionID: "q", Seed: 1024, PromptTokens: []int32{5},
		PolicySent: job.Policy, PolicyReceived: job.Policy, Traces: []rollout.Trace{trace(), trace()},
	}
}

func TestGroupCheck(t *testing.T) {
	job, group := answered()
	if err := group.Check(job); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		damage func(*rollout.Group)
		want   rollout.Reason
	}{
		"other job":         {func(g *rollout.Group) { g.Job = "k" }, rollout.ReasonGarbage},
		"other question":    {func(g *rollout.Group) { g.QuestionID = "r" }, rollout.ReasonGarbage},
		"other seed":        {func(g *rollout.Group) { g.Seed++ }, rollout.ReasonGarbage},
		"sent stale":        {func(g *rollout.Group) { g.PolicySent.Version-- }, rollout.ReasonStale},
		"received stale":    {func(g *rollout.Group) { g.PolicyReceived.Version++ }, rollout.ReasonStale},
		"other incarnation": {func(g *rollout.Group) { g.PolicySent.Incarnation++ }, rollout.ReasonStale},
		"no prompt":         {func(g *rollout.Group) { g.PromptTokens = nil }, rollout.ReasonGarbage},
		"missing trace":     {func(g *rollout.Group) { g.Traces = g.Traces[:1] }, rollout.ReasonGarbage},
		"aborted":           {func(g *rollout.Group) { g.Traces[1].Finish = rollout.FinishAbort }, rollout.ReasonAborted},
		"empty":             {func(g *rollout.Group) { g.Traces[1].Tokens = nil }, rollout.ReasonEmpty},
		"too long":          {func(g *rollout.Group) { g.Traces[0].Tokens = []int32{1, 2, 3, 4} }, rollout.ReasonGarbage},
		"short logprobs":    {func(g *rollout.Group) { g.Traces[0].Logprobs = []float32{0} }, rollout.ReasonGarbage},
		"NaN":               {func(g *rollout.Group) { g.Traces[0].Logprobs[1] = float32(math.NaN()) }, rollout.ReasonGarbage},
		"infinite":          {func(g *rollout.Group) { g.Traces[0].Logprobs[1] = float32(math.Inf(-1)) }, rollout.ReasonGarbage},
		"positive":          {func(g *rollout.Group) { g.Traces[0].Logprobs[1] = 0.5 }, rollout.ReasonGarbage},
		"no entropy":        {func(g *rollout.Group) { g.Traces[0].TopKEntropy = nil }, rollout.ReasonGarbage},
		"unknown finish":    {func(g *rollout.Group) { g.Traces[0].Finish = 9 }, rollout.ReasonGarbage},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			job, group := answered()
			tt.damage(&group)
			var dropped *rollout.Dropped
			if err := group.Check(job); !errors.As(err, &dropped) || dropped.Reason != tt.want || dropped.Job != job.ID {
				t.Fatalf("got %v, want dropped: %s", err, tt.want)
			}
		})
	}
	job.Sampling.TopLogprobs = 0
	if err := group.Check(job); err == nil {
		t.Fatal("entropies that were not asked for passed")
	}
}
