package configs

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/uadt"
)

// Problem is one value that is out of range, or one that contradicts another.
type Problem struct {
	Key  string
	Text string
}

// Error implements error.
func (p *Problem) Error() string { return p.Key + ": " + p.Text }

// check collects problems.
type check []*Problem

func (c *check) require(ok bool, key, format string, args ...any) {
	if !ok {
		*c = append(*c, &Problem{Key: key, Text: fmt.Sprintf(format, args...)})
	}
}

func (c *check) oneOf(key, value string, allowed ...string) {
	c.require(slices.Contains(allowed, value), key, "%q is none of %s", value, strings.Join(allowed, ", "))
}

func (c *check) between(key string, value, low, high float64) {
	c.require(!math.IsNaN(value) && value >= low && value <= high, key, "%v is outside [%v, %v]", value, low, high)
}

// each adds every error that err joins.
func (c *check) each(key string, err error) {
	for _, one := range flatten(err) {
		c.require(false, key, "%v", one)
	}
}

func (c *check) atLeast(key string, value, least int) {
	c.require(value >= least, key, "%d is less than %d", value, least)
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// Validate reports every value that is out of range or contradicts another.
func (c Config) Validate() []*Problem {
	var found check
	found.require(nameForm.MatchString(c.Name), "name", "%q has characters other than letters, digits, - and _", c.Name)
	found.require(c.Seed >= 0, "seed", "%d is negative", c.Seed)
	found.require(c.Model.Path != "", "model.path", "names no model directory")
	found.atLeast("model.max_pixels", c.Model.MaxPixels, 4*28*28)
	found.oneOf("data.prompts", c.Data.Prompts, "ophthareason", "micro")
	found.atLeast("data.max_images", c.Data.MaxImages, 1)
	found.between("data.max_bad_share", c.Data.MaxBadShare, 0, 1)
	c.validateStages(&found)
	c.validateRollout(&found)
	c.validateReward(&found)
	c.validateUADT(&found)
	c.validateGRPO(&found)
	c.validateRest(&found)
	return found
}

func (c Config) validateStages(found *check) {
	found.require(len(c.Stages) > 0, "stages", "is empty, want at least one stage")
	seen := map[string]bool{}
	for i, s := range c.Stages {
		key := func(field string) string { return fmt.Sprintf("stages.%d.%s", i, field) }
		found.require(nameForm.MatchString(s.Name), key("name"), "%q has characters other than letters, digits, - and _", s.Name)
		found.require(!seen[s.Name], key("name"), "%q is the name of an earlier stage", s.Name)
		seen[s.Name] = true
		found.oneOf(key("kind"), string(s.Kind), "align", "sft", "rl")
		found.require(s.Data != "", key("data"), "names no file")
		found.atLeast(key("steps"), s.Steps, 1)
		found.atLeast(key("batch"), s.Batch, 1)
		found.require(s.LearningRate > 0 && s.LearningRate < 1, key("learning_rate"), "%v is outside (0, 1)", s.LearningRate)
		found.atLeast(key("warmup"), s.Warmup, 0)
		found.oneOf(key("decay"), s.Decay, "constant", "linear", "cosine")
		updates := s.Steps // of the optimizer
		if s.Kind == trainer.RL {
			updates *= max(1, c.GRPO.UpdatesPerRollout)
		}
		found.require(s.Decay == "constant" || s.Warmup <= updates, key("warmup"), "%d is more than the %d updates of the stage, over which the rate decays", s.Warmup, updates)
		found.between(key("weight_decay"), s.WeightDecay, 0, 1)
		for _, part := range s.Frozen {
			found.oneOf(key("frozen"), string(part), "vision", "projector", "language")
		}
		found.require(len(s.Frozen) < 3, key("frozen"), "leaves nothing to train")
	}
}

func (c Config) validateRollout(found *check) {
	r := c.Rollout
	found.each("rollout.servers", CheckServers(r.Servers))
	found.atLeast("rollout.workers", r.Workers, 0)
	found.require(r.GroupSize >= 2 && r.GroupSize <= 1024, "rollout.group_size", "%d is outside [2, 1024]: one trace has no group to compare with", r.GroupSize)
	found.atLeast("rollout.questions_per_step", r.QuestionsPerStep, 1)
	found.require(r.Temperature > 0 && r.Temperature <= 2, "rollout.temperature", "%v is outside (0, 2]", r.Temperature)
	found.require(r.TopP > 0 && r.TopP <= 1, "rollout.top_p", "%v is outside (0, 1]", r.TopP)
	found.atLeast("rollout.top_k", r.TopK, 0)
	filtered := r.TopP != 1 || r.TopK != 0
	rl := slices.ContainsFunc(c.Stages, func(s Stage) bool { return s.Kind == trainer.RL })
	found.require(!filtered || !rl || r.AllowFiltered, "rollout.allow_filtered", "is false, but top_p or top_k filter the distribution, which the trainer cannot recompute")
	found.require(!r.AllowFiltered || c.UADT.Entropy == uadt.Exact, "uadt.entropy", "%s is refused with rollout.allow_filtered, want exact", c.UADT.Entropy)
	found.require(!r.AllowFiltered || c.GRPO.Correction == "off", "grpo.correction", "%s is refused with rollout.allow_filtered", c.GRPO.Correction)
	found.atLeast("rollout.max_tokens", r.MaxTokens, 1)
	found.atLeast("rollout.max_staleness", r.MaxStaleness, 0)
	found.atLeast("rollout.max_refill", r.MaxRefill, 0)
	found.atLeast("rollout.concurrency", r.Concurrency, 1)
	found.require(r.Timeout > 0, "rollout.timeout", "%s is not more than 0", r.Timeout)
}

func (c Config) validateReward(found *check) {
	r := c.Reward
	found.between("reward.format", r.Format, 0, 100)
	found.between("reward.answer", r.Answer, 0, 100)
	found.oneOf("reward.multi", string(r.Multi), string(reward.MultiExact), string(reward.MultiF1))
	found.oneOf("reward.open", string(r.Open), string(reward.OpenMatch), string(reward.OpenF1), string(reward.OpenJudge))
	found.require(r.Open != reward.OpenJudge || r.JudgeURL != "", "reward.judge_url", "is empty, but reward.open is judge")
	if r.JudgeURL != "" {
		found.each("reward.judge_url", checkJudge(r.JudgeURL))
	}
	found.require(r.Timeout > 0, "reward.timeout", "%s is not more than 0", r.Timeout)
}

func (c Config) validateUADT(found *check) {
	for _, err := range flatten(errors.Join(c.Shaping().Validate(), c.Advantage().Validate())) {
		var field *uadt.FieldError
		if errors.As(err, &field) {
			found.require(false, field.Key, "%v is not allowed, want %s", field.Value, field.Want)
		} else {
			found.require(false, "uadt", "%v", err)
		}
	}
}

func (c Config) validateGRPO(found *check) {
	g := c.GRPO
	found.oneOf("grpo.loss", string(g.Loss), "ppo", "gspo", "cispo")
	found.between("grpo.clip_low", g.ClipLow, 0, 1)
	found.between("grpo.clip_high", g.ClipHigh, 0, 100)
	found.require(g.DualClip == 0 || g.DualClip > 1, "grpo.dual_clip", "%v is neither 0 nor more than 1", g.DualClip)
	found.oneOf("grpo.kl", g.KL, "off", "k1", "k2", "k3")
	found.oneOf("grpo.kl_in", g.KLIn, "loss", "reward")
	found.require(g.KL != "k1" || g.KLIn == "reward", "grpo.kl_in", "k1 is refused in the loss, where its expected gradient is 0")
	found.require(g.KLIn != "reward" || g.KL == "k1" || g.KL == "off", "grpo.kl", "%s is refused in the reward, want k1", g.KL)
	found.between("grpo.kl_coef", g.KLCoef, 0, 100)
	found.require(g.KL == "off" || g.KLCoef > 0, "grpo.kl_coef", "is 0, but grpo.kl is %s", g.KL)
	found.oneOf("grpo.aggregation", string(g.Aggregation), "token_mean", "seq_mean_token_sum", "seq_mean_token_mean", "seq_mean_token_sum_norm")
	found.require(g.Loss != trainer.GSPO || g.Aggregation == trainer.SeqMeanTokenMean, "grpo.aggregation", "%s is refused with gspo, want seq_mean_token_mean", g.Aggregation)
	found.atLeast("grpo.updates_per_rollout", g.UpdatesPerRollout, 1)
	found.require(g.UpdatesPerRollout <= c.Rollout.QuestionsPerStep, "grpo.updates_per_rollout", "%d is more than rollout.questions_per_step, %d", g.UpdatesPerRollout, c.Rollout.QuestionsPerStep)
	found.oneOf("grpo.truncated", g.Truncated, "keep", "mask")
	found.oneOf("grpo.denominator", g.Denominator, "all", "informative")
	// KL and entropy terms have a gradient in every group; a denominator that
	// counts only some of them would scale those terms up.
	every := g.KL != "off" && g.KLIn == "loss" || g.EntropyBonus > 0
	found.require(g.Denominator != "informative" || !every, "grpo.denominator", "informative is refused with a KL term in the loss or an entropy bonus, which act on every group")
	found.oneOf("grpo.correction", g.Correction, "off", "token", "sequence")
	found.between("grpo.entropy_bonus", g.EntropyBonus, 0, 100)
	found.between("grpo.entropy_quantile", g.EntropyQuantile, 0, 1)
	found.between("grpo.grad_clip", g.GradClip, 0, 1e6)
}

func (c Config) validateRest(found *check) {
	t := c.Trainer
	found.oneOf("trainer.backend", t.Backend, "gorgonia", "pytorch")
	found.atLeast("trainer.ranks", t.Ranks, 1)
	found.require(t.Backend != "gorgonia" || t.Ranks == 1, "trainer.ranks", "%d, but gorgonia trains in one process", t.Ranks)
	found.oneOf("trainer.launch", t.Launch, "local", "external")
	found.oneOf("trainer.sharding", t.Sharding, "auto", "none", "full")
	found.atLeast("trainer.token_budget", t.TokenBudget, 1)
	found.require(t.Beta2 > 0 && t.Beta2 < 1, "trainer.beta2", "%v is outside (0, 1)", t.Beta2)
	found.atLeast("trainer.max_bad_steps", t.MaxBadSteps, 1)
	found.require(t.Timeout > 0, "trainer.timeout", "%s is not more than 0", t.Timeout)
	found.oneOf("trainer.weights", t.Weights, "directory", "nccl", "lora")
	if t.Weights == "nccl" {
		found.require(t.Backend == "pytorch", "trainer.weights", "nccl, but %s broadcasts no weights, only pytorch does", t.Backend)
		found.require(len(c.Rollout.Servers) > 0, "rollout.servers", "is empty, but trainer.weights is nccl: the server that is started here takes no broadcasts")
	}
	c.validateLoRA(found)
	if c.Bus.URL != "" {
		found.each("bus.url", CheckBus(c.Bus.URL))
	}
	found.atLeast("eval.every", c.Eval.Every, 0)
	found.atLeast("eval.questions", c.Eval.Questions, 0)
	found.atLeast("eval.traces", c.Eval.Traces, 1)
	found.atLeast("checkpoint.every", c.Checkpoint.Every, 1)
	found.atLeast("checkpoint.keep", c.Checkpoint.Keep, 1)
	found.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	found.oneOf("log.format", c.Log.Format, "text", "json")
}

// flatten lists the errors that errors.Join put together.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, flatten(e)...)
		}
		return all
	}
	return []error{err}
}

// located puts the origin of the value before each problem.
func (l *Loaded) located(problems []*Problem) []error {
	var errs []error
	for _, p := range problems {
		origin := "default"
		for name := p.Key; name != ""; name = name[:max(0, strings.LastIndexByte(name, '.'))] {
			if o, ok := l.Origins[name]; ok { // of the key, or of the schedule that it is a part of
				origin = o
				break
			}
		}
		errs = append(errs, fmt.Errorf("%s: %w", origin, p))
	}
	return errs
}
