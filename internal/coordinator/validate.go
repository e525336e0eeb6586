package coordinator

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/uadt"
)

// withDefaults returns o with every zero field that has a default filled in.
func (o Options) withDefaults() Options {
	o.CheckpointEvery = cmp.Or(o.CheckpointEvery, 10)
	o.MaxBadSteps = cmp.Or(o.MaxBadSteps, 3)
	o.RL.Concurrency = cmp.Or(o.RL.Concurrency, 64)
	o.RL.Updates = cmp.Or(o.RL.Updates, 1)
	o.Eval.Samples = cmp.Or(o.Eval.Samples, 1)
	o.Limits = o.Limits.withDefaults()
	if o.Parts.Sink == nil {
		o.Parts.Sink = telemetry.Discard()
	}
	if o.Parts.Logger == nil {
		o.Parts.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Parts.Now == nil {
		o.Parts.Now = time.Now
	}
	if o.Parts.Plan == nil {
		o.Parts.Plan = func(groups []trainer.Group) (trainer.Plan, error) { return trainer.NewPlan(groups, 1, 0) }
	}
	stages := make([]Stage, len(o.Stages))
	copy(stages, o.Stages)
	for i := range stages {
		stages[i].Decay = cmp.Or(stages[i].Decay, trainer.DecayConstant)
		stages[i].Aggregation = cmp.Or(stages[i].Aggregation, trainer.TokenMean)
	}
	o.Stages = stages
	return o
}

func (l Limits) withDefaults() Limits {
	l.Sample = cmp.Or(l.Sample, 10*time.Minute)
	l.Adopt = cmp.Or(l.Adopt, 10*time.Minute)
	l.Commit = cmp.Or(l.Commit, time.Minute)
	l.Begin = cmp.Or(l.Begin, 15*time.Minute)
	l.Load = cmp.Or(l.Load, 5*time.Minute)
	l.Train = cmp.Or(l.Train, 30*time.Minute)
	l.Publish = cmp.Or(l.Publish, 10*time.Minute)
	l.Save = cmp.Or(l.Save, 30*time.Minute)
	l.Reward = cmp.Or(l.Reward, 2*time.Minute)
	l.Store = cmp.Or(l.Store, 5*time.Minute)
	l.Encode = cmp.Or(l.Encode, time.Minute)
	l.RewardJobs = cmp.Or(l.RewardJobs, 16)
	return l
}

// problems collects everything that is wrong with options.
type problems []error

func (p *problems) require(ok bool, format string, args ...any) {
	if !ok {
		*p = append(*p, fmt.Errorf(format, args...))
	}
}

// stageName is what a bus subject, a file and a job id may all hold.
var stageName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func (o Options) validate() error {
	var p problems
	p.require(len(o.Stages) > 0, "no stage to run")
	p.require(o.CheckpointEvery > 0, "checkpoint cadence is %d steps, want at least 1", o.CheckpointEvery)
	p.require(o.MaxBadSteps > 0, "max_bad_steps is %d, want at least 1", o.MaxBadSteps)
	p.require(o.Parts.Backend != nil, "no trainer backend")
	p.require(o.Parts.Keeper != nil, "no keeper of weights")
	p.require(o.Parts.Store != nil, "no store")
	p.require(o.Parts.Checkpoints != nil, "no store of checkpoints")
	seen := map[string]bool{}
	rl := false
	for i, s := range o.Stages {
		p.require(stageName.MatchString(s.Name) && !seen[s.Name], "stage %d is called %q, want a unique name of letters, digits, _ and -", i, s.Name)
		seen[s.Name] = true
		rl = rl || s.Kind == trainer.RL
		updates := 1
		if s.Kind == trainer.RL {
			updates = o.RL.Updates
		}
		s.validate(&p, updates)
		p.require(s.Kind == trainer.RL || o.Parts.Encoder != nil, "stage %s: no encoder", s.Name)
	}
	if rl {
		o.validateRL(&p)
	}
	if err := errors.Join(p...); err != nil {
		return fmt.Errorf("coordinator options: %w", err)
	}
	return nil
}

func (s Stage) validate(p *problems, updates int) {
	switch s.Kind {
	case trainer.Align, trainer.SFT, trainer.RL:
	default:
		p.require(false, "stage %s is of kind %q, want align, sft or rl", s.Name, s.Kind)
	}
	p.require(s.Steps > 0, "stage %s has %d steps, want at least 1", s.Name, s.Steps)
	p.require(s.Batch > 0, "stage %s has %d questions a step, want at least 1", s.Name, s.Batch)
	if err := s.schedule(s.Steps * updates).Validate(); err != nil {
		*p = append(*p, fmt.Errorf("stage %s: %w", s.Name, err))
	}
	p.require(s.Source != nil, "stage %s has no source of questions", s.Name)
}

func (o Options) validateRL(p *problems) {
	r := o.RL
	p.require(o.Parts.Fleet != nil, "stage of kind rl, but no fleet")
	p.require(o.Parts.Scorer != nil, "stage of kind rl, but no scorer")
	p.require(r.Sampling.Traces >= 2 && r.Sampling.Traces <= 1024, "groups of %d traces, want 2 to 1024", r.Sampling.Traces)
	p.require(r.Sampling.MaxTokens > 0, "max_tokens is %d, want at least 1", r.Sampling.MaxTokens)
	p.require(r.Sampling.Temperature > 0, "temperature is %v, want more than 0", r.Sampling.Temperature)
	p.require(r.MaxStaleness >= 0, "max_staleness is %d, want at least 0", r.MaxStaleness)
	p.require(r.MaxRefill >= 0, "max_refill is %d, want at least 0", r.MaxRefill)
	p.require(r.Concurrency > 0, "concurrency is %d, want at least 1", r.Concurrency)
	p.require(r.Updates > 0, "updates_per_rollout is %d, want at least 1", r.Updates)
	p.require(r.RewardKL >= 0, "KL coefficient in the reward is %v, want at least 0", r.RewardKL)
	p.require(r.RewardKL == 0 || r.Loss.KL.Kind == trainer.KLOff, "KL both in the reward and in the loss")
	p.require(r.Loss.KL.Kind != trainer.K1, "KL estimator k1 in the loss has an expected gradient of 0, use it in the reward")
	p.require(r.UADT.Span != uadt.SpanThink || r.Think != nil, "uadt.span is think, but nothing finds the think tags")
	p.require(o.Eval.Every >= 0 && o.Eval.Samples > 0, "evaluation every %d steps of %d samples, want at least 0 and 1", o.Eval.Every, o.Eval.Samples)
	if err := errors.Join(r.UADT.Validate(), r.Advantage.Validate()); err != nil {
		*p = append(*p, err)
	}
}
