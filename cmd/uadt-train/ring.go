package main

import (
	"time"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/internal/coordinator"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// ringOptions turns a recipe into what the coordinator runs. Sources,
// evaluation questions and parts are for the caller to fill in.
func ringOptions(c configs.Config, banned []int32) coordinator.Options {
	o := coordinator.Options{
		Run: c.Name, Seed: c.Seed, Model: c.Model.Path,
		CheckpointEvery: c.Checkpoint.Every, MaxBadSteps: c.Trainer.MaxBadSteps,
		RL:     rlOptions(c, banned),
		Eval:   coordinator.Eval{Every: c.Eval.Every, Samples: c.Eval.Traces, Greedy: true},
		Limits: limits(c),
	}
	for _, s := range c.Stages {
		stage := coordinator.Stage{
			Name: s.Name, Kind: s.Kind, Steps: s.Steps, Batch: s.Batch, LearningRate: s.LearningRate,
			Warmup: s.Warmup, Decay: trainer.Decay(s.Decay), GradClip: c.GRPO.GradClip,
			Frozen: s.Frozen, Optimizer: c.Optimizer(s),
		}
		if s.Kind == trainer.RL {
			stage.Batch = c.Rollout.QuestionsPerStep
		}
		o.Stages = append(o.Stages, stage)
	}
	return o
}

func rlOptions(c configs.Config, banned []int32) coordinator.RL {
	loss := c.StepOptions()
	rl := coordinator.RL{
		Sampling: rollout.Sampling{
			Traces: c.Rollout.GroupSize, Temperature: c.Rollout.Temperature, TopP: c.Rollout.TopP, TopK: c.Rollout.TopK,
			MaxTokens: c.Rollout.MaxTokens, Banned: banned,
		},
		MaxStaleness: c.Rollout.MaxStaleness, MaxRefill: c.Rollout.MaxRefill, DropZeroVariance: c.Rollout.Dynamic,
		Concurrency: c.Rollout.Concurrency * max(1, len(c.Rollout.Servers)),
		Advantage:   c.Advantage(), UADT: c.Shaping(), Loss: loss, Updates: c.GRPO.UpdatesPerRollout,
		InformativeOnly: c.GRPO.Denominator == "informative", MaskTruncated: c.GRPO.Truncated == "mask",
	}
	if c.GRPO.KLIn == "reward" {
		rl.RewardKL, rl.Loss.KL = c.GRPO.KLCoef, trainer.KL{}
	}
	return rl
}

// limits derives every deadline from the two that a recipe has.
func limits(c configs.Config) coordinator.Limits {
	train := c.Trainer.Timeout
	return coordinator.Limits{
		Sample: c.Rollout.Timeout, Adopt: c.Rollout.Timeout, Reward: c.Reward.Timeout,
		Begin: train, Load: train, Train: train, Publish: train, Save: train,
		Commit: time.Minute, Store: 5 * time.Minute, Encode: time.Minute,
	}
}

// hasKind says whether a recipe has a stage of kind.
func hasKind(c configs.Config, kinds ...trainer.StageKind) bool {
	for _, s := range c.Stages {
		for _, k := range kinds {
			if s.Kind == k {
				return true
			}
		}
	}
	return false
}
