package coordinator

import (
	"log/slog"
	"time"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/uadt"
)

// Options is everything a run consists of.
type Options struct {
	Run         string // name of the run
	Incarnation uint64 // of this start, above that of any earlier one; it fences and influences nothing
	Seed        int64  // of the run
	// Model is the Hugging Face directory that the first stage starts from, and
	// ModelDigest the SHA-256 over its weights, needed when KL is on.
	Model, ModelDigest string
	Stages             []Stage // in order; at least one
	RL                 RL      // of all stages of kind rl
	Eval               Eval    // beside RL stages
	// CheckpointEvery is the number of steps between checkpoints, default 10;
	// every stage ends with one too.
	CheckpointEvery int
	// MaxBadSteps is how many optimizer updates in a row may be refused before
	// the run stops, default 3.
	MaxBadSteps int
	// Resume is the checkpoint to go on from; nil starts anew. Durable rollout
	// batches that the store holds are used again in both cases.
	Resume *Point
	Limits Limits
	Parts  Parts
}

// Parts are the things that the ring is made of. Fleet, Scorer and Keeper may
// be nil when no stage needs them, Encoder when every stage is rl.
type Parts struct {
	Fleet       rollout.Fleet
	Backend     trainer.Backend
	Keeper      trainer.Keeper
	Encoder     trainer.Encoder
	Scorer      reward.Scorer
	Store       Store
	Checkpoints Checkpoints
	Sink        telemetry.Sink // default drops all events
	Logger      *slog.Logger   // default drops all records
	// Plan assigns the traces of one update to ranks and micro-batches. Default:
	// trainer.NewPlan for one rank without a token budget. A *trainer.GroupError
	// drops its group as the trainer's own refusal does.
	Plan func(groups []trainer.Group) (trainer.Plan, error)
	// Now is the clock of deadlines and timings, default time.Now. No result
	// depends on it.
	Now func() time.Time
}

// Stage is one stage of the recipe.
type Stage struct {
	Name         string // unique; [A-Za-z0-9_-]
	Kind         trainer.StageKind
	Steps        int // N; see [StepsOf] for epochs
	Batch        int // questions or records of a step
	LearningRate float64
	Warmup       int           // optimizer updates of linear warm-up, default 0
	Decay        trainer.Decay // default constant
	FinalRate    float64       // that linear and cosine decay approach, default 0
	GradClip     float64
	Frozen       []trainer.ModelPart
	Optimizer    trainer.Optimizer
	Source       Source
	// Aggregation of align and sft, default token_mean; rl has it in RL.Loss.
	Aggregation trainer.Aggregation
}

// RL is what the rl stages share.
type RL struct {
	// Sampling is the template of every job's: Traces is the group size, at
	// least 2. Seed and TopLogprobs are filled in by the coordinator.
	Sampling     rollout.Sampling
	MaxStaleness int // steps that a policy may lie behind, default 0: synchronous
	// MaxRefill is how many questions a step may draw in place of dropped ones,
	// default 0. A step that stays short is trained as it is.
	MaxRefill int
	// DropZeroVariance drops groups whose scored rewards have a standard
	// deviation below Advantage.MinStd (dynamic sampling); default off.
	DropZeroVariance bool
	Concurrency      int // jobs at the fleet at a time; default 64
	Advantage        uadt.AdvantageOptions
	UADT             uadt.Options
	// Loss is the template of every update's options. The coordinator fills in
	// learning rate, gradient clip, denominators, temperature and banned ids.
	Loss    trainer.StepOptions
	Updates int // optimizer updates of a rollout batch, default 1
	// RewardKL is coef of grpo.kl_in: reward: coef * sum_t (old - ref) is
	// subtracted from the reward for the advantage. 0 is off; Loss.KL is then
	// the other way. Both at once are refused.
	RewardKL float64
	// InformativeOnly divides the loss by the tokens and sequences of groups
	// with a gradient instead of all (grpo.denominator: informative).
	InformativeOnly bool
	MaskTruncated   bool // grpo.truncated: mask
	// Think returns the tokens [from, to) of a response that lie between the
	// think tags, for uadt.span: think. Needed only then.
	Think func(tokens []int32) (from, to int)
}

// Eval says how a policy is evaluated during RL stages, through the same fleet.
type Eval struct {
	Questions []rollout.Question // default none: no evaluation
	Every     int                // steps between evaluations; 0 evaluates versions 0 and N only
	Samples   int                // traces of a question at the training temperature, default 1; also k of pass@k
	Greedy    bool               // also one greedy trace of each
}

// Limits are the longest times that the coordinator waits.
type Limits struct {
	Sample     time.Duration // one job at the fleet, default 10 m; past it the job is dropped
	Adopt      time.Duration // new weights live, default 10 m
	Commit     time.Duration // default 1 m
	Begin      time.Duration // default 15 m
	Load       time.Duration // default 5 m
	Train      time.Duration // one Score or Step, default 30 m
	Publish    time.Duration // default 10 m
	Save       time.Duration // snapshot, and writing it, each; default 30 m
	Reward     time.Duration // one trace, default 2 m; past it the reward is missing
	Store      time.Duration // one write or read of the run directory, default 5 m
	Encode     time.Duration // one record, default 1 m
	RewardJobs int           // traces scored at a time, default 16
}
