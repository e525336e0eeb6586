package configs

import (
	"time"

	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/uadt"
)

// Defaults returns the configuration of an empty file. It does not validate:
// a recipe must name a model and at least one stage.
func Defaults() Config {
	shaping, advantage, scoring := uadt.DefaultOptions(), uadt.DefaultAdvantageOptions(), reward.DefaultOptions()
	return Config{
		Name: "run", RunsDir: "runs",
		Model: Model{MaxPixels: 1280 * 28 * 28},
		Data:  Data{Prompts: "ophthareason", MaxImages: 6, MaxBadShare: 0.01},
		Rollout: Rollout{
			Workers: 1, GroupSize: 8, QuestionsPerStep: 16, Temperature: 1, TopP: 1, MaxTokens: 2048,
			MaxRefill: 64, Concurrency: 64, Timeout: 10 * time.Minute,
		},
		Reward: Reward{
			Format: scoring.FormatWeight, Answer: scoring.AnswerWeight,
			Multi: scoring.Multi, Open: scoring.Open, Timeout: scoring.Timeout,
		},
		UADT: UADT{
			Rule: shaping.Rule, Gamma: shaping.Gamma, Lambda: shaping.Lambda, Gain: shaping.Gain, Norm: shaping.Norm,
			Entropy: shaping.Entropy, Kappa: shaping.Kappa, Floor: shaping.Floor, Span: shaping.Span, Level: shaping.Level,
			Truncated: shaping.Truncated, Placebo: shaping.Placebo, Update: shaping.Update,
		},
		GRPO: GRPO{
			Advantage: advantage.Advantage, Eps: advantage.Eps, MinStd: advantage.MinStd,
			Loss: trainer.PPO, ClipLow: 0.2, ClipHigh: 0.2, KL: "off", KLIn: "loss",
			Aggregation: trainer.TokenMean, UpdatesPerRollout: 1, Truncated: "keep", Denominator: "all",
			Correction: "off", GradClip: 1,
		},
		Trainer: Trainer{
			Backend: "gorgonia", Ranks: 1, Launch: "local", Sharding: "auto", Python: "python3", TokenBudget: 16384,
			Beta2: 0.999, MaxBadSteps: 3, Timeout: 10 * time.Minute,
			Weights: "directory", LoRATargets: loraTargets(),
		},
		Eval:       Eval{Questions: 128, Traces: 4},
		Checkpoint: Checkpoint{Every: 10, Keep: 3},
		Log:        Log{Level: "info", Format: "text"},
	}
}

// stageDefaults are the values of the keys that a stage leaves out.
func stageDefaults() Stage {
	return Stage{Batch: 16, Decay: "constant"}
}
