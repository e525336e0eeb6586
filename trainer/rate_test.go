package trainer

import (
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestLearningRate(t *testing.T) {
	for _, c := range []struct {
		name string
		rate LearningRate
		want []float64
	}{
		{"constant", LearningRate{Peak: 2, Decay: DecayConstant}, []float64{2, 2, 2}},
		{"warm-up", LearningRate{Peak: 2, Warmup: 4, Decay: DecayConstant}, []float64{0.5, 1, 1.5, 2, 2}},
		{"linear", LearningRate{Peak: 2, Total: 4, Decay: DecayLinear}, []float64{2, 1.5, 1, 0.5, 0, 0}},
		{"linear to a rest", LearningRate{Peak: 2, Final: 1, Total: 4, Decay: DecayLinear}, []float64{2, 1.75, 1.5, 1.25, 1}},
		{"linear after warm-up", LearningRate{Peak: 2, Warmup: 2, Total: 6, Decay: DecayLinear}, []float64{1, 2, 2, 1.5, 1, 0.5, 0}},
		{"cosine", LearningRate{Peak: 2, Total: 4, Decay: DecayCosine}, []float64{2, 1 + math.Sqrt2/2, 1, 1 - math.Sqrt2/2, 0}},
		{"only warm-up", LearningRate{Peak: 2, Warmup: 2, Total: 2, Decay: DecayLinear}, []float64{1, 2, 0}},
	} {
		if err := c.rate.Validate(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		for n, want := range c.want {
			near(t, c.name, c.rate.At(n), want, 1e-12)
		}
	}
}

func TestLearningRateProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := LearningRate{Peak: rapid.Float64Range(1e-7, 1).Draw(t, "peak"), Total: rapid.IntRange(1, 200).Draw(t, "total"),
			Decay: rapid.SampledFrom([]Decay{DecayConstant, DecayLinear, DecayCosine}).Draw(t, "decay")}
		r.Warmup = rapid.IntRange(0, r.Total-1).Draw(t, "warm-up")
		previous := 0.0
		for n := range r.Total {
			x := r.At(n)
			if x <= 0 || x > r.Peak*(1+1e-12) {
				t.Fatalf("rate %v at %d of %+v", x, n, r)
			}
			if n < r.Warmup && x < previous || n > r.Warmup && x > previous*(1+1e-12) {
				t.Fatalf("rate goes from %v to %v at %d of %+v", previous, x, n, r)
			}
			previous = x
		}
		near(t, "rate after the warm-up", r.At(r.Warmup), r.Peak, 1e-15)
	})
}

func TestLearningRateRefuses(t *testing.T) {
	err := LearningRate{Peak: -1, Final: math.NaN(), Warmup: -1, Decay: "sudden"}.Validate()
	for _, part := range []string{"learning rate -1", "final learning rate NaN", "warm-up of -1", `decay "sudden"`} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("nothing about %q in %v", part, err)
		}
	}
	for _, r := range []LearningRate{{Decay: DecayLinear}, {Decay: DecayCosine, Total: 3, Warmup: 4}, {Decay: DecayConstant, Peak: math.Inf(1)}} {
		if err := r.Validate(); err == nil {
			t.Errorf("%+v was accepted", r)
		}
	}
}

func TestStepOptionsValidate(t *testing.T) {
	if err := ppo().Validate(); err != nil {
		t.Errorf("plain options: %v", err)
	}
	nan := math.NaN()
	for part, change := range map[string]func(*StepOptions){
		"loss ":               func(o *StepOptions) { o.Loss = "sgd" },
		"clip low":            func(o *StepOptions) { o.ClipLow = 1.1 },
		"clip high":           func(o *StepOptions) { o.ClipHigh = nan },
		"dual clip":           func(o *StepOptions) { o.DualClip = 1 },
		`KL "k1" in the loss`: func(o *StepOptions) { o.KL.Kind = K1 },
		"KL coefficient":      func(o *StepOptions) { o.KL.Coef = -1 },
		"aggregation":         func(o *StepOptions) { o.Aggregation = "" },
		"denominators":        func(o *StepOptions) { o.Denominators.Tokens = -1 },
		"correction level":    func(o *StepOptions) { o.Correction.Level, o.Correction.Mode = "batch", "mask" },
		"correction mode":     func(o *StepOptions) { o.Correction.Level = "token" },
		// Upper 0 is 2: the mask would leave out every token.
		"correction bounds [3, 2]": func(o *StepOptions) {
			o.Correction = Correction{Level: CorrectionToken, Mode: CorrectMask, Lower: 3}
		},
		"correction bounds":      func(o *StepOptions) { o.Correction.Lower, o.Correction.Upper = 3, 2 },
		"covariance \"":          func(o *StepOptions) { o.Covariance.Kind, o.Covariance.Share = "cov", 0.1 },
		"covariance share":       func(o *StepOptions) { o.Covariance.Kind = "clip" },
		"covariance coefficient": func(o *StepOptions) { o.Covariance.Coef = -1 },
		"entropy bonus":          func(o *StepOptions) { o.EntropyBonus = nan },
		"entropy quantile":       func(o *StepOptions) { o.EntropyQuantile = 2 },
		"learning rate":          func(o *StepOptions) { o.LearningRate = math.Inf(1) },
		"gradient clip":          func(o *StepOptions) { o.GradClip = -1 },
		"temperature":            func(o *StepOptions) { o.Temperature = 0 },
	} {
		o := ppo()
		change(&o)
		err := o.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), part) || strings.Contains(err.Error(), "\n") {
			t.Errorf("want one complaint about %q, got %v", part, err)
		}
	}
	if err := (StepOptions{}).Validate(); err == nil || strings.Count(err.Error(), "\n") < 2 {
		t.Errorf("the zero value: %v", err)
	}
}
