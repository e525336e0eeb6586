package uadt

// Norm says how the distance of H from tau is measured.
type Norm string

// The norms, with the range of u and of omega = tanh(k*u) at k = 1.
const (
	// Diff is H - tau in nats: u >= -tau, omega in [-tanh(tau), 1).
	Diff Norm = "diff"
	// Rel is (H - tau)/max(tau, floor): u >= -1, omega in [-0.762, 1).
	Rel Norm = "rel"
	// ZScore is (H - tau)/max(sigma, floor): u unbounded, omega in (-1, 1).
	ZScore Norm = "z"
)

// Span says which sampled tokens H covers.
type Span string

// The spans.
const (
	SpanResponse Span = "response" // all sampled tokens
	SpanThink    Span = "think"    // those between the think tags; the caller marks them in Trace.Span
)

// Level says whose uncertainty H is.
type Level string

// The levels.
const (
	LevelTrace Level = "trace" // of the trace
	LevelGroup Level = "group" // of the question: every H is the mean of its group
)

// Truncated says whether truncated traces enter mu, SD and shaping.
type Truncated string

// What becomes of truncated traces.
const (
	Include Truncated = "include"
	Exclude Truncated = "exclude" // they keep omega = 0
)

// Placebo replaces omega by something that carries less information.
type Placebo string

// The placebos.
const (
	PlaceboOff    Placebo = "off"
	PlaceboWithin Placebo = "within" // omega shuffled among the counted traces of each group, seeded
	PlaceboMean   Placebo = "mean"   // omega replaced by its group mean
)

// Update says whether tau and sigma take in the batch before or after it is
// shaped.
type Update string

// The orders.
const (
	UpdateAfter  Update = "after"
	UpdateBefore Update = "before"
)

// Options holds every key of the section uadt. The zero value is not usable:
// start from [DefaultOptions].
type Options struct {
	// Rule is none, c1, c2, c3 or c4; see [Rules]. Default c1.
	Rule string `yaml:"rule"`
	// Gamma is the memory of tau and sigma, a number in [0, 1] or a half-life in
	// shaping steps or as a share of the stage. Default: half-life 10%.
	Gamma Gamma `yaml:"gamma"`
	// Lambda is the strength of shaping, a number or schedule, at least 0; from
	// 1 on c1 and c2 can flip signs. Default 0.5 (ours, not the paper's).
	Lambda Schedule `yaml:"lambda"`
	// Gain is k of omega = tanh(k*u), a number or schedule, at least 0. Default 1.
	Gain Schedule `yaml:"gain"`
	// Norm is diff, rel or z. Default rel.
	Norm Norm `yaml:"norm"`
	// Entropy is the estimator: exact, topk<k> (such as topk20) or surprisal.
	// Default exact.
	Entropy Estimator `yaml:"entropy"`
	// Recenter subtracts the mean of A' over the scored traces of the batch's
	// informative groups. Default false. It may flip signs.
	Recenter bool `yaml:"recenter"`
	// Rescale multiplies A' so that sum|A'| = sum|A| over the batch. Default
	// false. Applied after Recenter.
	Rescale bool `yaml:"rescale"`
	// Kappa bounds the additive rule c3 to |A|/kappa. Default 2; 0 is unlimited
	// and raises an alarm.
	Kappa float64 `yaml:"kappa"`
	// Floor is the least denominator of rel and z. Default 0.01 nats.
	Floor float64 `yaml:"floor"`
	// Span is response or think. Default response.
	Span Span `yaml:"span"`
	// Level is trace or group. Default trace.
	Level Level `yaml:"level"`
	// Truncated is include or exclude. Default exclude.
	Truncated Truncated `yaml:"truncated"`
	// Placebo is off, within or mean. Default off.
	Placebo Placebo `yaml:"placebo"`
	// Update is after or before. Default after.
	Update Update `yaml:"update"`
	// Carry keeps tau and sigma from one RL stage to the next. Default false.
	Carry bool `yaml:"carry"`
	// Shadow lists rules whose A' is computed beside, for the ledger only.
	// Default none.
	Shadow []string `yaml:"shadow"`
}

// DefaultOptions returns the defaults named at the fields of [Options].
func DefaultOptions() Options {
	return Options{
		Rule: "c1", Gamma: Gamma{HalfLife: Extent{Share: 0.1}},
		Lambda: Constant(0.5), Gain: Constant(1),
		Norm: Rel, Entropy: Exact, Kappa: 2, Floor: 0.01,
		Span: SpanResponse, Level: LevelTrace, Truncated: Exclude,
		Placebo: PlaceboOff, Update: UpdateAfter,
	}
}

// Baseline is a group baseline by name.
type Baseline string

// The baselines; formulas are at [Advantages].
const (
	GRPO   Baseline = "grpo"
	DrGRPO Baseline = "dr_grpo"
	RLOO   Baseline = "rloo"
)

// AdvantageOptions holds the keys of the section grpo that decide A.
type AdvantageOptions struct {
	// Advantage is grpo, dr_grpo or rloo. Default grpo.
	Advantage Baseline `yaml:"advantage"`
	// Eps is added to the standard deviation by grpo. Default 1e-6 (as verl,
	// EasyR1 and slime; TRL, VLM-R1 and ms-swift have 1e-4).
	Eps float64 `yaml:"eps"`
	// MinStd is the standard deviation of scored rewards below which a group has
	// zero variance and A = 0. Default 1e-3.
	MinStd float64 `yaml:"min_std"`
}

// DefaultAdvantageOptions returns the defaults named at the fields.
func DefaultAdvantageOptions() AdvantageOptions {
	return AdvantageOptions{Advantage: GRPO, Eps: 1e-6, MinStd: 1e-3}
}
