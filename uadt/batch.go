package uadt

// Batch is one rollout batch: every group that will be trained in this shaping
// step, a late group included.
type Batch struct {
	Groups []Group // [Q] in job order
}

// Group is the traces of one question.
type Group struct {
	ID     string  // job id; seeds the placebo and names the group in errors
	Traces []Trace // [G] in seed order
}

// Trace is what the shaper must know of one sampled response.
type Trace struct {
	ID     string  // names the trace in errors; may be empty
	Reward float64 // sum of the weighted reward parts; ignored when Missing
	// Penalty is subtracted from Reward for the advantage only (grpo.kl_in:
	// reward, coef * sum of k1); zero variance looks at Reward before it.
	Penalty   float64
	Missing   bool // the reward could not be computed: left out of mean and std, A = 0
	Correct   bool // the answer part of the reward equals 1
	Truncated bool // the trace ended at max_tokens
	Aborted   bool // the server gave up on it: dropped with reason "aborted"
	Length    int  // T, sampled tokens, end-of-sequence included; 0 drops the trace as "empty"
	// Entropies is [T], the per-token signal of the configured estimator: token
	// entropy (exact, topk) or [Surprisals] (surprisal). nil uses H instead.
	Entropies []float32
	// Span is [T]: the tokens that H covers (uadt.span: think, tool tokens out).
	// nil means all of them. Ignored when Entropies is nil.
	Span []bool
	// H is the mean over the span where the caller has it already; nats. Read
	// only when Entropies is nil.
	H float64
}

// DropReason says why a trace takes no part in a batch.
type DropReason string

// The reasons, spelt as in the ledger.
const (
	NotDropped     DropReason = ""
	DroppedEmpty   DropReason = "empty"
	DroppedAborted DropReason = "aborted"
)
