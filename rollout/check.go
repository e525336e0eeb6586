package rollout

import (
	"errors"
	"fmt"
	"math"
)

// Check says whether g is an answer to job that may be trained: the right
// question, seed, policy and number of traces, every trace with 1 to MaxTokens
// tokens, one finite log-probability <= 0 for each, finite entropies >= 0 exactly
// when they were asked for, and none aborted. A group that is not fails with a *Dropped
// that says why.
func (g Group) Check(job Job) error {
	drop := func(reason Reason, format string, args ...any) error {
		return &Dropped{Job: job.ID, Reason: reason, Err: fmt.Errorf(format, args...)}
	}
	if g.Job != job.ID || g.QuestionID != job.Question.ID || g.Seed != job.Sampling.Seed {
		return drop(ReasonGarbage, "group is of job %q, question %q, seed %d, want %q, %q, %d",
			g.Job, g.QuestionID, g.Seed, job.ID, job.Question.ID, job.Sampling.Seed)
	}
	if g.PolicySent != job.Policy || g.PolicyReceived != job.Policy {
		return drop(ReasonStale, "sampled by policy %s, finished under %s, want %s", g.PolicySent, g.PolicyReceived, job.Policy)
	}
	if len(g.PromptTokens) == 0 {
		return drop(ReasonGarbage, "no prompt tokens")
	}
	if err := checkTokens(g.PromptTokens); err != nil {
		return drop(ReasonGarbage, "prompt: %w", err)
	}
	if len(g.Traces) != job.Sampling.Traces {
		return drop(ReasonGarbage, "%d traces, want %d", len(g.Traces), job.Sampling.Traces)
	}
	for i, trace := range g.Traces {
		if trace.Finish == FinishAbort {
			return drop(ReasonAborted, "trace %d was aborted by the server", i)
		}
		if len(trace.Tokens) == 0 {
			return drop(ReasonEmpty, "trace %d has no tokens", i)
		}
		if err := trace.check(job.Sampling); err != nil {
			return drop(ReasonGarbage, "trace %d: %w", i, err)
		}
	}
	return nil
}

// check looks at the arrays of one trace.
func (t Trace) check(s Sampling) error {
	if len(t.Tokens) > s.MaxTokens {
		return fmt.Errorf("%d tokens, want at most %d", len(t.Tokens), s.MaxTokens)
	}
	if len(t.Logprobs) != len(t.Tokens) {
		return fmt.Errorf("%d log-probabilities for %d tokens", len(t.Logprobs), len(t.Tokens))
	}
	if err := checkTokens(t.Tokens); err != nil {
		return err
	}
	for i, lp := range t.Logprobs {
		// Rounding may lift the log of a probability of one a little over zero.
		if v := float64(lp); math.IsNaN(v) || math.IsInf(v, 0) || v > 1e-3 {
			return fmt.Errorf("log-probability %g of token %d", lp, i)
		}
	}
	if s.TopLogprobs == 0 && t.TopKEntropy != nil {
		return errors.New("top-k entropies that were not asked for")
	}
	if s.TopLogprobs > 0 && len(t.TopKEntropy) != len(t.Tokens) {
		return fmt.Errorf("%d top-k entropies for %d tokens", len(t.TopKEntropy), len(t.Tokens))
	}
	for i, h := range t.TopKEntropy {
		if v := float64(h); math.IsNaN(v) || math.IsInf(v, 0) || v < -1e-3 {
			return fmt.Errorf("top-k entropy %g of token %d", h, i)
		}
	}
	if t.Finish > FinishAbort {
		return fmt.Errorf("unknown finish %d", t.Finish)
	}
	return nil
}

// checkTokens refuses ids that no vocabulary has.
func checkTokens(ids []int32) error {
	for i, id := range ids {
		if id < 0 {
			return fmt.Errorf("token %d has id %d", i, id)
		}
	}
	return nil
}
