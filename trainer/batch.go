package trainer

import "github.com/uadt-train/uadt-train/rollout"

// Sequence is one trace as a backend sees it.
type Sequence struct {
	Tokens []int32 // [T] response tokens, end-of-sequence included
	// Mask is [T]: false leaves the token out of loss, entropy and denominators.
	// nil means all true.
	Mask []bool
	// RolloutLogprobs is [T] nats from the engine that sampled; nil for align
	// and sft records.
	RolloutLogprobs []float32
}

// Group is one prompt and the traces that share it: prompt and images are
// encoded once for all of them. An align or sft record is a group with G = 1.
type Group struct {
	ID     string          // job or record id, for error messages
	Prompt []int32         // [P] after image expansion
	Images []rollout.Image // in the order of their pads in Prompt
	Traces []Sequence      // [G]
}

// Batch is the data of one optimizer update. Step is the number of that update
// counted over the whole run, from 1. A rollout batch trained in several
// updates is several batches, all loaded and scored before the first Step.
type Batch struct {
	Step   int
	Groups []Group // [Q]
	Plan   Plan
}

// Scores holds what the weights at the time of Score say about a batch.
type Scores struct {
	Old       [][][]float32 // [Q][G][T] log-probability of each response token at the step's temperature, nats
	Reference [][][]float32 // [Q][G][T] the same under the reference policy; nil when KL is off
	Entropy   [][][]float32 // [Q][G][T] exact token entropy at the step's temperature, nats
	Seconds   float64
}

// Advantages carries the shaped advantages of a loaded batch.
type Advantages struct {
	// Values is [Q][G][1] (one value for the whole trace) or [Q][G][T].
	Values  [][][]float32
	Options StepOptions
}
