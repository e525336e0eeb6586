package rollout_test

import (
	"errors"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/rollout"
)

// drawAnswered draws a job and a group that answers it.
func drawAnswered(t *rapid.T) (rollout.Job, rollout.Group) {
	ids := rapid.SliceOfN(rapid.Int32Range(0, 1<<18), 1, 12)
	policy := rollout.Policy{Incarnation: rapid.Uint64().Draw(t, "incarnation"), Version: rapid.IntRange(0, 1<<20).Draw(t, "version"), Digest: "d"}
	job := rollout.Job{
		ID: "j", Question: rollout.Question{ID: "q"}, Policy: policy,
		Sampling: rollout.Sampling{Traces: rapid.IntRange(1, 5).Draw(t, "traces"), MaxTokens: 12, Seed: rapid.Int64().Draw(t, "seed"),
			TopLogprobs: rapid.SampledFrom([]int{0, 20}).Draw(t, "top")},
	}
	group := rollout.Group{Job: "j", QuestionID: "q", Seed: job.Sampling.Seed, PolicySent: policy, PolicyReceived: policy, PromptTokens: ids.Draw(t, "prompt")}
	for range job.Sampling.Traces {
		tokens := ids.Draw(t, "tokens")
		numbers := func(low, high float32, label string) []float32 {
			return rapid.SliceOfN(rapid.Float32Range(low, high), len(tokens), len(tokens)).Draw(t, label)
		}
		trace := rollout.Trace{Tokens: tokens, Logprobs: numbers(-50, 0, "logprobs"), Finish: rapid.SampledFrom([]rollout.Finish{rollout.FinishStop, rollout.FinishLength}).Draw(t, "finish")}
		if job.Sampling.TopLogprobs > 0 {
			trace.TopKEntropy = numbers(0, 12, "entropy")
		}
		group.Traces = append(group.Traces, trace)
	}
	return job, group
}

// TestOneBadNumberIsGarbage: a good group passes; one bad value anywhere in it,
// however it came there, does not: a single NaN would poison every statistic of
// its step.
func TestOneBadNumberIsGarbage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		job, group := drawAnswered(t)
		if err := group.Check(job); err != nil {
			t.Fatalf("a good group: %v", err)
		}
		trace := &group.Traces[rapid.IntRange(0, len(group.Traces)-1).Draw(t, "which")]
		at := rapid.IntRange(0, len(trace.Tokens)-1).Draw(t, "where")
		odd := rapid.SampledFrom([]float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))}).Draw(t, "value")
		where := []string{"log-probability", "token", "prompt"}
		if trace.TopKEntropy != nil {
			where = append(where, "entropy", "negative entropy")
		}
		switch rapid.SampledFrom(where).Draw(t, "what") {
		case "log-probability":
			trace.Logprobs[at] = odd
		case "token":
			trace.Tokens[at] = rapid.Int32Range(math.MinInt32, -1).Draw(t, "id")
		case "prompt":
			group.PromptTokens[rapid.IntRange(0, len(group.PromptTokens)-1).Draw(t, "prompt at")] = -1
		case "entropy":
			trace.TopKEntropy[at] = odd
		case "negative entropy":
			trace.TopKEntropy[at] = -0.1
		}
		var dropped *rollout.Dropped
		if err := group.Check(job); !errors.As(err, &dropped) || dropped.Reason != rollout.ReasonGarbage {
			t.Fatalf("got %v, want garbage", err)
		}
	})
}

// TestSeedsOfJobsDoNotMeet: whatever identifies two draws, their traces share no
// seed if anything in it differs, and all seeds are ones that JSON carries.
func TestSeedsOfJobsDoNotMeet(t *testing.T) {
	type draw struct {
		run      int64
		stage    string
		question string
		epoch    int
		attempt  int
	}
	draws := rapid.Custom(func(t *rapid.T) draw {
		// Digits and separators: what a careless join would confuse.
		text := rapid.StringMatching(`[0-9|:]{0,4}`)
		return draw{rapid.Int64Range(-2, 12).Draw(t, "run"), text.Draw(t, "stage"), text.Draw(t, "question"),
			rapid.IntRange(0, 12).Draw(t, "epoch"), rapid.IntRange(0, 12).Draw(t, "attempt")}
	})
	base := func(d draw) int64 { return rollout.BaseSeed(d.run, d.stage, d.question, d.epoch, d.attempt) }
	rapid.Check(t, func(t *rapid.T) {
		a, b := draws.Draw(t, "a"), draws.Draw(t, "b")
		if s := base(a); s < 0 || s%1024 != 0 || s != base(a) {
			t.Fatalf("base %d of %+v", s, a)
		}
		if (base(a) == base(b)) != (a == b) {
			t.Fatalf("%+v and %+v: bases %d and %d", a, b, base(a), base(b))
		}
	})
}

// TestOlderIsAnOrder: sorting by Older is total up to the digest, and no policy
// is older than itself: the fences of workers and trainers rest on that.
func TestOlderIsAnOrder(t *testing.T) {
	policies := rapid.Custom(func(t *rapid.T) rollout.Policy {
		return rollout.Policy{Incarnation: rapid.Uint64Range(0, 3).Draw(t, "e"), Version: rapid.IntRange(0, 3).Draw(t, "v"), Digest: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "digest")}
	})
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SliceOfN(policies, 3, 3).Draw(t, "policies")
		a, b, c := p[0], p[1], p[2]
		same := a.Incarnation == b.Incarnation && a.Version == b.Version
		if n := len(slices.DeleteFunc([]bool{a.Older(b), b.Older(a), same}, func(x bool) bool { return !x })); n != 1 {
			t.Fatalf("%v and %v: %d of older, younger and the same", a, b, n)
		}
		if a.Older(b) && b.Older(c) && !a.Older(c) {
			t.Fatalf("%v before %v before %v, but not the first before the last", a, b, c)
		}
	})
}
