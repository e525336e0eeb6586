package configs

import (
	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/uadt"
)

// Shaping returns the options of the shaper.
func (c Config) Shaping() uadt.Options {
	u := c.UADT
	return uadt.Options{
		Rule: u.Rule, Gamma: u.Gamma, Lambda: u.Lambda, Gain: u.Gain, Norm: u.Norm, Entropy: u.Entropy,
		Recenter: u.Recenter, Rescale: u.Rescale, Kappa: u.Kappa, Floor: u.Floor, Span: u.Span, Level: u.Level,
		Truncated: u.Truncated, Placebo: u.Placebo, Update: u.Update, Carry: u.Carry,
	}
}

// Advantage returns the options of the group baseline.
func (c Config) Advantage() uadt.AdvantageOptions {
	return uadt.AdvantageOptions{Advantage: c.GRPO.Advantage, Eps: c.GRPO.Eps, MinStd: c.GRPO.MinStd}
}

// Scoring returns the options of the scorer. The judge, if any, is for the
// caller to plug in.
func (c Config) Scoring() reward.Options {
	o := reward.DefaultOptions()
	o.FormatWeight, o.AnswerWeight = c.Reward.Format, c.Reward.Answer
	o.Multi, o.Open, o.Timeout = c.Reward.Multi, c.Reward.Open, c.Reward.Timeout
	return o
}

// Optimizer returns the constants of AdamW for stage s.
func (c Config) Optimizer(s Stage) trainer.Optimizer {
	return trainer.Optimizer{Beta1: 0.9, Beta2: c.Trainer.Beta2, Epsilon: 1e-8, WeightDecay: s.WeightDecay}
}

// StepOptions returns the options of one update; denominators, learning rate
// and banned ids are for the caller to fill in.
func (c Config) StepOptions() trainer.StepOptions {
	g := c.GRPO
	options := trainer.StepOptions{
		Loss: g.Loss, ClipLow: g.ClipLow, ClipHigh: g.ClipHigh, DualClip: g.DualClip,
		Aggregation: g.Aggregation, EntropyBonus: g.EntropyBonus, EntropyQuantile: g.EntropyQuantile,
		GradClip: g.GradClip, Temperature: c.Rollout.Temperature,
	}
	if g.KL != "off" {
		options.KL = trainer.KL{Kind: trainer.KLKind(g.KL), Coef: g.KLCoef, Clamp: g.KLClamp}
	}
	if g.Correction != "off" {
		options.Correction = trainer.Correction{Level: g.Correction, Mode: "truncate", Upper: correctionUpper}
	}
	return options
}

// correctionUpper truncates w = exp(old - rollout). It is no key: 2 is what
// peers default to, and the share truncated is reported every step.
const correctionUpper = 2
