package rollout

import (
	"fmt"
	"time"
)

// Policy names one set of weights. Incarnation is that of the coordinator that
// published it; it fences stale messages and never enters a seed or a tensor.
type Policy struct {
	Incarnation uint64 `json:"incarnation"`
	Version     int    `json:"version"` // 0 is the policy at the start of the stage's rollouts; +1 a step
	Digest      string `json:"digest"`  // SHA-256 over the weights, lower-case hex
}

// String renders p as "e.version-digest", the digest cut to 12 characters.
func (p Policy) String() string {
	digest := p.Digest
	if len(digest) > 12 {
		digest = digest[:12]
	}
	return fmt.Sprintf("%d.%d-%s", p.Incarnation, p.Version, digest)
}

// Older says that p comes before q: of a lower incarnation, or of the same and a
// lower version. Policies that differ in the digest alone are in no order.
func (p Policy) Older(q Policy) bool {
	return p.Incarnation < q.Incarnation || p.Incarnation == q.Incarnation && p.Version < q.Version
}

// JobID identifies a job within a run. It holds only [A-Za-z0-9_-], so that it
// is one token of a bus subject. It is the same after a resume.
type JobID string

// Purpose tells training jobs, which hold a slot, from evaluation jobs, which
// hold none and may not change the run.
type Purpose string

// What a job may be for.
const (
	Train Purpose = "train"
	Eval  Purpose = "eval"
)

// Sampling says how the traces of a job are drawn. All fields are always sent:
// a server default never fills a gap.
type Sampling struct {
	Traces      int     `json:"traces"`      // G, at least 1
	Temperature float64 `json:"temperature"` // 0 is greedy
	TopP        float64 `json:"top_p"`       // 1 is off
	TopK        int     `json:"top_k"`       // 0 is off
	MinP        float64 `json:"min_p"`       // 0 is off
	MaxTokens   int     `json:"max_tokens"`  // most tokens of a trace, the end of sequence included
	// Seed is the base seed; trace i is drawn with Seed + i, as vLLM does.
	Seed int64 `json:"seed"`
	// TopLogprobs is k of the topk entropy estimator; 0 asks for none.
	TopLogprobs int `json:"top_logprobs"`
	// Banned lists token ids that may never be sampled (image and video pads).
	Banned []int32 `json:"banned,omitempty"`
}

// Job asks a fleet for the G traces of one question. It is the unit of work,
// of redelivery and of seeding.
type Job struct {
	ID       JobID    `json:"id"`
	Stage    string   `json:"stage"`
	Step     int      `json:"step"`  // shaping step of the stage that will train it, from 0
	Index    int      `json:"index"` // admission order within the step, refills included
	Epoch    int      `json:"epoch"`
	Question Question `json:"question"`
	// Policy is the policy that must sample the job. Its Version is exact; a
	// fleet waits until that version is live and never samples with another.
	Policy   Policy   `json:"policy"`
	Sampling Sampling `json:"sampling"`
	Purpose  Purpose  `json:"purpose"`
	// Deadline is when the coordinator gives the job up and counts it dropped.
	// Zero means no deadline.
	Deadline time.Time `json:"deadline"`
}
