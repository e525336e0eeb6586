package rollout

import "time"

// Finish is the reason a trace ended.
type Finish uint8

// Why a trace ended. The values are those of the wire and never change.
const (
	FinishStop   Finish = 0 // an end-of-sequence or stop token was sampled
	FinishLength Finish = 1 // max_tokens was reached: the trace is truncated
	FinishAbort  Finish = 2 // the server gave up on it; it is never trained
)

// String names f as vLLM's finish_reason does.
func (f Finish) String() string {
	switch f {
	case FinishStop:
		return "stop"
	case FinishLength:
		return "length"
	case FinishAbort:
		return "abort"
	}
	return "unknown"
}

// Trace is one sampled response.
type Trace struct {
	Tokens   []int32   // [T], end-of-sequence token included
	Logprobs []float32 // [T] nats, of the behaviour policy at the sampling temperature
	// TopKEntropy is [T] nats by the topk estimator, or nil when not asked for.
	TopKEntropy []float32
	Text        string // decoded response without special tokens
	Finish      Finish
}

// Group is what a fleet returns for one job: G traces of one question in seed
// order. It is immutable once handed on.
type Group struct {
	Job          JobID
	QuestionID   string
	PromptTokens []int32 // [P] after image expansion, as the server used them
	Traces       []Trace // [G]
	// PolicySent and PolicyReceived are the policy live on the server when the
	// request left and when the answer came; they differ only if the fleet is
	// broken, and such a group is dropped.
	PolicySent, PolicyReceived Policy
	Server                     string // id of the server that answered
	Seed                       int64  // base seed; trace i used Seed + i
	Started, Finished          time.Time
}

// Tokens counts the sampled tokens of all traces.
func (g Group) Tokens() int {
	total := 0
	for _, t := range g.Traces {
		total += len(t.Tokens)
	}
	return total
}
