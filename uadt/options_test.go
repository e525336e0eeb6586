package uadt

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestDefaultsAreValid(t *testing.T) {
	if err := DefaultOptions().Validate(); err != nil {
		t.Errorf("options: %v", err)
	}
	if err := DefaultAdvantageOptions().Validate(); err != nil {
		t.Errorf("advantage options: %v", err)
	}
}

// The defaults that documents quote.
func TestDefaults(t *testing.T) {
	o := DefaultOptions()
	if o.Rule != "c1" || o.Norm != Rel || o.Kappa != 2 || o.Floor != 0.01 || o.Recenter || o.Rescale || o.Carry {
		t.Errorf("options %+v", o)
	}
	near(t, "lambda", o.Lambda.At(0, 60), 0.5, 0)
	near(t, "gain", o.Gain.At(0, 60), 1, 0)
	near(t, "gamma over 6 of 60 steps", math.Pow(o.Gamma.Of(60), 6), 0.5, 1e-12)
	a := DefaultAdvantageOptions()
	if a.Advantage != GRPO || a.Eps != 1e-6 || a.MinStd != 1e-3 {
		t.Errorf("advantage options %+v", a)
	}
}

// keysOf lists the keys that err complains of.
func keysOf(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("error %T is not a list", err)
	}
	var keys []string
	for _, e := range joined.Unwrap() {
		var field *FieldError
		if !errors.As(e, &field) {
			t.Fatalf("error %v is not a *FieldError", e)
		}
		if field.Want == "" || !strings.Contains(field.Error(), field.Key) {
			t.Errorf("unhelpful error %q", field.Error())
		}
		keys = append(keys, field.Key)
	}
	return keys
}

func TestValidateOneKey(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	linear := Schedule{Shape: ShapeLinear, From: 1, Over: Extent{Steps: 5}}
	with := func(s Schedule, change func(*Schedule)) Schedule { change(&s); return s }
	for _, c := range []struct {
		key    string
		change func(*Options)
	}{
		{"uadt.rule", func(o *Options) { o.Rule = "c5" }},
		{"uadt.rule", func(o *Options) { o.Rule = "" }},
		{"uadt.shadow[1]", func(o *Options) { o.Shadow = []string{"c2", "best"} }},
		{"uadt.gamma", func(o *Options) { o.Gamma = Gamma{Value: 1.01} }},
		{"uadt.gamma", func(o *Options) { o.Gamma = Gamma{Value: -0.1} }},
		{"uadt.gamma", func(o *Options) { o.Gamma = Gamma{Value: nan} }},
		{"uadt.gamma", func(o *Options) { o.Gamma.Value = 0.5 }},
		{"uadt.gamma.half_life", func(o *Options) { o.Gamma = Gamma{HalfLife: Extent{Steps: -1}} }},
		{"uadt.gamma.half_life", func(o *Options) { o.Gamma = Gamma{HalfLife: Extent{Share: 1.5}} }},
		{"uadt.lambda", func(o *Options) { o.Lambda = Constant(-0.1) }},
		{"uadt.lambda", func(o *Options) { o.Lambda = Constant(nan) }},
		{"uadt.lambda", func(o *Options) { o.Lambda = Constant(inf) }},
		{"uadt.lambda.shape", func(o *Options) { o.Lambda.Shape = "square"; o.Lambda.Over = Extent{Steps: 1} }},
		{"uadt.lambda.to", func(o *Options) { o.Lambda = with(linear, func(s *Schedule) { s.To = -1 }) }},
		{"uadt.lambda.from", func(o *Options) { o.Lambda = with(linear, func(s *Schedule) { s.From = -1 }) }},
		{"uadt.lambda.over", func(o *Options) { o.Lambda = with(linear, func(s *Schedule) { s.Over = Extent{} }) }},
		{"uadt.lambda.over", func(o *Options) { o.Lambda = with(linear, func(s *Schedule) { s.Over = Extent{Share: -0.5} }) }},
		{"uadt.lambda.over", func(o *Options) { o.Lambda = with(linear, func(s *Schedule) { s.Over = Extent{Share: nan} }) }},
		{"uadt.gain.warmup", func(o *Options) { o.Gain.Warmup = Extent{Steps: -1} }},
		{"uadt.gain", func(o *Options) { o.Gain = Constant(-1) }},
		{"uadt.norm", func(o *Options) { o.Norm = "ratio" }},
		{"uadt.entropy", func(o *Options) { o.Entropy = "topk" }},
		{"uadt.kappa", func(o *Options) { o.Kappa = -1 }},
		{"uadt.kappa", func(o *Options) { o.Kappa = inf }},
		{"uadt.floor", func(o *Options) { o.Floor = 0 }},
		{"uadt.floor", func(o *Options) { o.Floor = nan }},
		{"uadt.span", func(o *Options) { o.Span = "prompt" }},
		{"uadt.level", func(o *Options) { o.Level = "token" }},
		{"uadt.truncated", func(o *Options) { o.Truncated = "mask" }},
		{"uadt.placebo", func(o *Options) { o.Placebo = "" }},
		{"uadt.update", func(o *Options) { o.Update = "during" }},
	} {
		o := DefaultOptions()
		c.change(&o)
		if got := keysOf(t, o.Validate()); !slices.Equal(got, []string{c.key}) {
			t.Errorf("want a complaint about %s alone, got %v (%v)", c.key, got, o.Validate())
		}
	}
}

func TestValidateAdvantageKeys(t *testing.T) {
	for _, c := range []struct {
		key    string
		change func(*AdvantageOptions)
	}{
		{"grpo.advantage", func(o *AdvantageOptions) { o.Advantage = "gae" }},
		{"grpo.eps", func(o *AdvantageOptions) { o.Eps = -1e-6 }},
		{"grpo.eps", func(o *AdvantageOptions) { o.Eps = math.NaN() }},
		{"grpo.min_std", func(o *AdvantageOptions) { o.MinStd = 0 }},
		{"grpo.min_std", func(o *AdvantageOptions) { o.MinStd = math.Inf(1) }},
	} {
		o := DefaultAdvantageOptions()
		c.change(&o)
		if got := keysOf(t, o.Validate()); !slices.Equal(got, []string{c.key}) {
			t.Errorf("want a complaint about %s alone, got %v", c.key, got)
		}
	}
}

func TestValidateReportsEverything(t *testing.T) {
	got := keysOf(t, Options{}.Validate())
	for _, key := range []string{"uadt.rule", "uadt.lambda.shape", "uadt.gain.shape", "uadt.norm", "uadt.entropy",
		"uadt.floor", "uadt.span", "uadt.level", "uadt.truncated", "uadt.placebo", "uadt.update"} {
		if !slices.Contains(got, key) {
			t.Errorf("nothing about %s in %v", key, got)
		}
	}
	_, err := NewShaper(Setup{})
	for _, part := range []string{"uadt.rule", "grpo.advantage", "grpo.min_std", "shaping steps"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("nothing about %s in %v", part, err)
		}
	}
}

// Whatever the documentation allows is allowed.
func TestEveryAllowedValueIsValid(t *testing.T) {
	var options []Options
	add := func(change func(*Options)) { o := DefaultOptions(); change(&o); options = append(options, o) }
	for _, r := range Rules() {
		add(func(o *Options) { o.Rule = r.Name; o.Shadow = []string{r.Name} })
	}
	for _, n := range []Norm{Diff, Rel, ZScore} {
		add(func(o *Options) { o.Norm = n })
	}
	for _, e := range []Estimator{Exact, Surprisal, TopK(1), TopK(20)} {
		add(func(o *Options) { o.Entropy = e })
	}
	for _, p := range []Placebo{PlaceboOff, PlaceboWithin, PlaceboMean} {
		add(func(o *Options) { o.Placebo = p })
	}
	for _, s := range []Shape{ShapeConstant, ShapeLinear, ShapeCosine, ShapeStep} {
		add(func(o *Options) { o.Lambda = Schedule{Shape: s, From: 1, Over: Extent{Share: 1}} })
	}
	add(func(o *Options) {
		o.Span, o.Level, o.Truncated, o.Update = SpanThink, LevelGroup, Include, UpdateBefore
	})
	add(func(o *Options) { o.Kappa = 0 })
	add(func(o *Options) { o.Gamma = Gamma{Value: 1} })
	for _, o := range options {
		if err := o.Validate(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
