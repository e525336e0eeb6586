package trainer

import (
	"context"
	"fmt"

	"github.com/uadt-train/uadt-train/rollout"
)

// StageKind is what a stage of the recipe does.
type StageKind string

// The three stages of the paper.
const (
	Align StageKind = "align" // image-caption pairs, language model frozen
	SFT   StageKind = "sft"   // reasoning traces
	RL    StageKind = "rl"    // GRPO + UADT
)

// ModelPart is a part of the model that can be frozen.
type ModelPart string

// The parts of a vision-language model.
const (
	Vision    ModelPart = "vision"
	Projector ModelPart = "projector"
	Language  ModelPart = "language"
)

// Reference names the policy that KL is measured against: that at the start of
// the RL stage. It is never updated.
type Reference struct {
	Path   string // Hugging Face directory
	Digest string // of the weights; a backend refuses another
}

// Stage tells a backend what it is about to train.
type Stage struct {
	Incarnation uint64 // commands of a lower one are refused
	Name        string
	Kind        StageKind
	// Model is the Hugging Face directory that the stage starts from, or started
	// from when Resume is set: only what trains adapters reads it then, and "" is
	// allowed otherwise.
	Model     string
	Frozen    []ModelPart
	Optimizer Optimizer
	Reference *Reference // nil when KL is off
	// Resume is a checkpoint directory written by Keeper.Save; empty starts from
	// Model with fresh optimizer state.
	Resume string
	// Step is the optimizer step that the weights stand at: 0 for a fresh run;
	// the next Load carries Step+1.
	Step int
	Seed int64
}

// Backend is the seam to everything that trains. Calls of one stage are made
// in order and never at the same time. The conformance suite is
// trainer/trainertest.
type Backend interface {
	// Begin makes the backend ready for stage, dropping all state of a lower
	// incarnation. It fails if the weights, the architecture or the resume point
	// are not what stage says.
	Begin(ctx context.Context, stage Stage) error
	// Load takes the data of one optimizer update. It fails with a *GroupError
	// if a group does not fit the model (image expansion, unknown id).
	Load(ctx context.Context, batch Batch) error
	// Score computes log-probabilities and entropies of the batch loaded for
	// step under the current weights, at the given temperature and bans.
	Score(ctx context.Context, step int, options ScoreOptions) (Scores, error)
	// Step applies one optimizer update and forgets the batch. A step that is
	// not the successor of the last one fails with a *StepOrderError; a NaN or
	// infinite loss or gradient with a *BadStepError, the weights unchanged and
	// the step counted as done.
	Step(ctx context.Context, step int, advantages Advantages) (Report, error)
	// Close releases what the backend holds.
	Close() error
}

// Keeper is how weights and optimizer state leave a backend.
type Keeper interface {
	// Publish makes the current weights available as policy (its Digest is
	// filled in) and returns at once. The files of an offer stay until the next
	// but one Publish.
	Publish(ctx context.Context, policy rollout.Policy) (rollout.Offer, error)
	// Save snapshots model, optimizer and RNG before it returns and writes them
	// below dir while other calls go on.
	Save(ctx context.Context, dir string) (Pending, error)
}

// Pending is a checkpoint that is being written.
type Pending interface {
	// Wait blocks until everything below the directory is durable and returns
	// what was saved.
	Wait(ctx context.Context) (Saved, error)
}

// Saved describes a durable checkpoint of a backend.
type Saved struct {
	Policy    string `json:"policy"`    // directory of the weights (Hugging Face layout), relative to the checkpoint
	Digest    string `json:"digest"`    // SHA-256 over the weights
	Optimizer string `json:"optimizer"` // file or directory of the optimizer state, relative
	Step      int    `json:"step"`      // optimizer step it stands at
	// Adapter is the digest under which Publish offers the same policy as an
	// adapter; empty where it offers weights.
	Adapter string `json:"adapter,omitempty"`
}

// Is says whether digest, that of an offer, names the saved policy.
func (s Saved) Is(digest string) bool {
	return digest == s.Digest || s.Adapter != "" && digest == s.Adapter
}

// ScoreOptions says how logits become log-probabilities.
type ScoreOptions struct {
	Temperature float64
	Banned      []int32
}

// Report is what one optimizer update measured. Shares are in [0, 1].
type Report struct {
	Step       int
	Loss       float64 // total
	PolicyLoss float64
	KLLoss     float64 // coefficient included
	// KLBehaviour is mean(old - lp) and KLReference the mean of the configured
	// estimator, in nats per token; KLReference is 0 when KL is off.
	KLBehaviour, KLReference    float64
	KLClamped                   float64 // share of tokens whose KL estimate was clamped
	ClipLow, ClipHigh, ClipDual float64
	Gap                         Gap
	GradNorm                    float64 // before clipping
	Entropy                     float64 // mean token entropy, nats
	Tokens                      int     // trained response tokens
	Seconds                     float64
	PeakBytes                   int64 // peak memory, 0 where it is not measured
}

// Gap compares the engine that sampled with the one that trains:
// w = exp(old - rollout).
type Gap struct {
	WMean, WMax, Truncated, KL float64 // KL = mean(rollout - old), nats per token
}

// GroupError refuses one group of a batch by name.
type GroupError struct {
	Group string
	Err   error
}

// Error implements error.
func (e *GroupError) Error() string { return fmt.Sprintf("group %s: %v", e.Group, e.Err) }

// Unwrap returns the cause.
func (e *GroupError) Unwrap() error { return e.Err }

// StepOrderError refuses a repeated or skipped step.
type StepOrderError struct{ Have, Got int }

// Error implements error.
func (e *StepOrderError) Error() string {
	return fmt.Sprintf("optimizer is at step %d, got step %d, want %d", e.Have, e.Got, e.Have+1)
}

// BadStepError says that a step's loss or gradient was not finite; the update
// was not applied.
type BadStepError struct {
	Step   int
	What   string   // which value was not finite
	Groups []string // ids of the offending groups, as far as known
	Traces []string // offending traces as group id/index, as far as known
}

// Error implements error.
func (e *BadStepError) Error() string {
	return fmt.Sprintf("step %d refused: %s is not finite (groups %v, traces %v)", e.Step, e.What, e.Groups, e.Traces)
}
