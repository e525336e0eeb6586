package trainer

import (
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func token(t tb, o StepOptions, ratio, a float64) Term {
	t.Helper()
	term, err := TokenLoss(o, -1, math.Log(ratio), a)
	if err != nil {
		t.Fatalf("token loss: %v", err)
	}
	return term
}

// clip 0.2, A = -1: ratio 0.5 -> 0.8, 1.5 -> 1.5, 4.0 -> 3.0 (c = 3) or 4.0.
// A = +1: ratio 1.5 -> -1.2; hi 0.28 -> -1.28.
func TestPPOWorkedNumbers(t *testing.T) {
	dual, wide := ppo(), ppo()
	dual.DualClip, wide.ClipHigh = 3, 0.28
	for _, c := range []struct {
		name        string
		o           StepOptions
		ratio, a    float64
		value, grad float64
		side        ClipSide
	}{
		{"low", ppo(), 0.5, -1, 0.8, 0, ClipLow},
		{"free, A < 0", ppo(), 1.5, -1, 1.5, 1.5, ClipNone},
		{"no dual clip", ppo(), 4, -1, 4, 4, ClipNone},
		{"dual clip", dual, 4, -1, 3, 0, ClipDual},
		{"below dual clip", dual, 1.5, -1, 1.5, 1.5, ClipNone},
		{"dual clip never for A > 0", dual, 4, 1, -1.2, 0, ClipHigh},
		{"high", ppo(), 1.5, 1, -1.2, 0, ClipHigh},
		{"higher", wide, 1.5, 1, -1.28, 0, ClipHigh},
		{"free, A > 0", ppo(), 0.5, 1, -0.5, -0.5, ClipNone},
		{"ratio 1", ppo(), 1, 2, -2, -2, ClipNone},
		{"A = 0", ppo(), 4, 0, 0, 0, ClipNone},
	} {
		got := token(t, c.o, c.ratio, c.a)
		near(t, c.name+" value", got.Value, c.value, 1e-12)
		near(t, c.name+" gradient", got.Grad, c.grad, 1e-12)
		if got.Clipped != c.side {
			t.Errorf("%s: side %d, want %d", c.name, got.Clipped, c.side)
		}
	}
}

func TestOtherLossesWorkedNumbers(t *testing.T) {
	o := ppo()
	o.Loss = NLL
	nll := token(t, o, 1, 5)
	near(t, "nll", nll.Value, 1, 0)
	near(t, "nll gradient", nll.Grad, -1, 0)
	o.Loss = CISPO // lp is -1: value = weight * A
	for ratio, weight := range map[float64]float64{0.5: 0.8, 1: 1, 1.1: 1.1, 4: 1.2} {
		got := token(t, o, ratio, 3)
		near(t, "cispo", got.Value, weight*3, 1e-12)
		near(t, "cispo gradient", got.Grad, -weight*3, 1e-12)
	}
	o.Loss = GSPO
	o.DualClip = 3
	near(t, "gspo has no dual clip", token(t, o, 4, -1).Value, 4, 1e-12)
	capped, err := TokenLoss(o, -1, 12, -1)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "gspo is capped", capped.Value, math.Exp(10), 1e-9)
	near(t, "gspo gradient at the cap", capped.Grad, 0, 0)
	o.Loss = "reinforce"
	if _, err := TokenLoss(o, 0, 0, 0); err == nil {
		t.Error("an unknown loss was computed")
	}
}

func TestTokenRatioIsBounded(t *testing.T) {
	for _, logRatio := range []float64{25, 500, math.MaxFloat64} {
		up, err := TokenLoss(ppo(), -1, logRatio, -1)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "value", up.Value, math.Exp(20), 1e-6)
		near(t, "gradient", up.Grad, 0, 0)
		down, _ := TokenLoss(ppo(), -1, -logRatio, 1)
		near(t, "value far down", down.Value, -math.Exp(-20), 1e-20)
	}
}

// k3 at d: the specification's numbers.
func TestKLWorkedNumbers(t *testing.T) {
	for _, c := range []struct{ d, free, clamped float64 }{
		{-1, 0.367879441, 0.367879441}, {0.1, 0.005170918, 0.005170918}, {1, 0.718281828, 0.718281828},
		{2.7, 11.179731725, 10}, {5, 142.413159, 10}, {-25, 24, 10},
	} {
		free, was, err := KL{Kind: K3}.Estimate(-1, -1+c.d)
		if err != nil || was {
			t.Fatalf("clamped %v, error %v", was, err)
		}
		near(t, "k3", free.Value, c.free, 1e-6)
		held, was, err := KL{Kind: K3, Clamp: true}.Estimate(-1, -1+c.d)
		if err != nil || was != (c.free != c.clamped) {
			t.Fatalf("d %v: clamped %v, error %v", c.d, was, err)
		}
		near(t, "k3 clamped", held.Value, c.clamped, 1e-6)
		if was && held.Grad != 0 {
			t.Errorf("d %v: gradient %v where the clamp holds", c.d, held.Grad)
		}
	}
	k1, _, _ := KL{Kind: K1}.Estimate(-1, -3)
	near(t, "k1", k1.Value, 2, 0)
	near(t, "k1 gradient", k1.Grad, 1, 0)
	k2, _, _ := KL{Kind: K2}.Estimate(-1, -3)
	near(t, "k2", k2.Value, 2, 0)
	near(t, "k2 gradient", k2.Grad, 2, 0)
	if _, _, err := (KL{Kind: "k4"}).Estimate(0, 0); err == nil {
		t.Error("k4 was computed")
	}
}

func TestKLProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lp, ref := rapid.Float64Range(-8, 0).Draw(t, "lp"), rapid.Float64Range(-8, 0).Draw(t, "ref")
		for _, clamp := range []bool{false, true} {
			for _, kind := range []KLKind{K1, K2, K3} {
				k := KL{Kind: kind, Clamp: clamp}
				here, clamped, err := k.Estimate(lp, ref)
				if err != nil {
					t.Fatalf("%v", err)
				}
				if kind != K1 && here.Value < 0 {
					t.Fatalf("%s = %v", kind, here.Value)
				}
				const h = 1e-6
				above, one, _ := k.Estimate(lp+h, ref)
				below, two, _ := k.Estimate(lp-h, ref)
				if clamped == one && clamped == two {
					slope := (above.Value - below.Value) / (2 * h)
					near(t, string(kind)+" slope", here.Grad, slope, 1e-5*math.Max(1, math.Abs(slope)))
				}
				same, _, _ := k.Estimate(lp, lp)
				near(t, "estimate of itself", same.Value, 0, 0)
			}
		}
	})
}

// The derivatives of whole traces against central differences.
func TestLossAgainstFiniteDifferences(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := drawOptions(t)
		in := drawInput(t, o)
		got := lossOf(t, in, o)
		// gspo's and cispo's stop-gradients are not seen by differences.
		if o.Loss == CISPO || o.Loss == GSPO || o.Covariance.Kind == ClipCov {
			in.Covariance = nil
			o.Covariance = Covariance{}
			o.Loss = NLL
			got = lossOf(t, in, o)
		}
		const h = 1e-6
		for i := range in.LP {
			shifted := in
			shifted.LP = slices.Clone(in.LP)
			shifted.LP[i] += h
			above := lossOf(t, shifted, o).Sums.Total()
			shifted.LP[i] -= 2 * h
			below := lossOf(t, shifted, o).Sums.Total()
			near(t, "d loss/d lp", got.GradLP[i], (above-below)/(2*h), 1e-6*math.Max(1, math.Abs(got.GradLP[i])))
			if o.EntropyBonus != 0 {
				shifted = in
				shifted.Entropy = slices.Clone(in.Entropy)
				shifted.Entropy[i]++
				near(t, "d loss/d entropy", got.GradEntropy[i], lossOf(t, shifted, o).Sums.Total()-got.Sums.Total(), 1e-9)
			}
		}
	})
}

// The gradient of gspo summed over a sequence is the derivative of its ratio
// along a common shift of all log-probabilities.
func TestGSPOAlongACommonShift(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := ppo()
		o.Loss = GSPO
		in := drawInput(t, o)
		in.Kept = nil
		got := lossOf(t, in, o)
		moved := func(h float64) float64 {
			shifted := in
			shifted.LP = slices.Clone(in.LP)
			for i := range shifted.LP {
				shifted.LP[i] += h
			}
			return lossOf(t, shifted, o).Sums.Policy
		}
		const h = 1e-6
		slope := (moved(h) - moved(-h)) / (2 * h)
		sum := 0.0
		for _, g := range got.GradLP {
			sum += g
		}
		if math.Abs((moved(h)-got.Sums.Policy)-(got.Sums.Policy-moved(-h))) < 1e-9 { // off a clip bound
			near(t, "sum of gradients", sum, slope, 1e-5*math.Max(1, math.Abs(slope)))
		}
	})
}

// Nothing outside of the mask is looked at.
func TestMaskKeepsPoisonOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := drawOptions(t)
		in := drawInput(t, o)
		want := lossOf(t, in, o)
		bad := in
		for _, s := range []*[]float64{&bad.LP, &bad.Entropy, &bad.Old, &bad.Reference, &bad.Rollout} {
			*s = slices.Clone(*s)
			for i := range *s {
				if !in.Mask[i] {
					(*s)[i] = math.NaN()
				}
			}
		}
		got := lossOf(t, bad, o)
		relative(t, "gradient", got.GradLP, want.GradLP, 0)
		if got.Sums != want.Sums {
			t.Fatalf("sums %+v, want %+v", got.Sums, want.Sums)
		}
		for i, m := range in.Mask {
			if !m && got.GradLP[i] != 0 {
				t.Fatalf("token %d has gradient %v outside of the mask", i, got.GradLP[i])
			}
		}
	})
}

// A zero advantage has no policy gradient, but KL still pulls.
func TestZeroAdvantage(t *testing.T) {
	o := ppo()
	in := TraceInput{LP: []float64{-1, -2}, Old: []float64{-1.5, -1}, Advantages: []float64{0}}
	got := lossOf(t, in, o)
	relative(t, "gradient", got.GradLP, []float64{0, 0}, 0)
	o.KL = KL{Kind: K3, Coef: 0.04}
	in.Reference = []float64{-2, -2}
	got = lossOf(t, in, o)
	near(t, "gradient of KL", got.GradLP[0], 0.25*0.04*(1-math.Exp(-1)), 1e-15)
	near(t, "KL at the reference", got.GradLP[1], 0, 0)
}

func TestOnPolicyGradientIsMinusA(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := ppo()
		o.Loss = rapid.SampledFrom([]Loss{PPO, CISPO, GSPO}).Draw(t, "loss")
		o.Denominators = Denominators{Tokens: 1, Sequences: 1, MaxTokens: 1}
		o.Aggregation = SeqMeanTokenSum
		lp := rapid.SliceOfN(rapid.Float64Range(-5, 0), 1, 6).Draw(t, "lp")
		a := rapid.Float64Range(-3, 3).Draw(t, "A")
		scale := 1.0
		if o.Loss == GSPO {
			scale = 1 / float64(len(lp))
		}
		got := lossOf(t, TraceInput{LP: lp, Old: lp, Advantages: []float64{a}}, o)
		relative(t, "gradient", got.GradLP, repeat(-a*scale, len(lp)), 1e-12)
		if got.Sums.Low+got.Sums.High+got.Sums.Dual != 0 {
			t.Fatalf("a clip acted on-policy: %+v", got.Sums)
		}
	})
}

func TestLossRefuses(t *testing.T) {
	one, two := []float64{-1}, []float64{-1, -2}
	kl, bonus, corrected := ppo(), ppo(), ppo()
	kl.KL = KL{Kind: K3, Coef: 1}
	bonus.EntropyBonus = 0.1
	corrected.Correction = Correction{Level: "token", Mode: "truncate", Upper: 2}
	unknown, empty := ppo(), ppo()
	unknown.Aggregation = "sum"
	empty.Denominators = Denominators{}
	wrong := ppo()
	wrong.Loss = "reinforce"
	for part, c := range map[string]struct {
		in TraceInput
		o  StepOptions
	}{
		"old is needed":                    {TraceInput{LP: one, Advantages: one}, ppo()},
		"old has 2 tokens":                 {TraceInput{LP: one, Old: two, Advantages: one}, ppo()},
		"advantages has 2 values":          {TraceInput{LP: one, Old: one, Advantages: two}, ppo()},
		"advantages has 0 values":          {TraceInput{LP: one, Old: one}, ppo()},
		"reference is needed":              {TraceInput{LP: one, Old: one, Advantages: one}, kl},
		"entropy is needed":                {TraceInput{LP: one, Old: one, Advantages: one}, bonus},
		"rollout is needed":                {TraceInput{LP: one, Old: one, Advantages: one}, corrected},
		"mask has 2 tokens":                {TraceInput{LP: one, Old: one, Advantages: one, Mask: []bool{true, true}}, ppo()},
		"kept has 0 tokens":                {TraceInput{LP: one, Old: one, Advantages: one, Kept: []bool{}}, ppo()},
		"covariance has 2 tokens":          {TraceInput{LP: one, Old: one, Advantages: one, Covariance: []bool{true, true}}, ppo()},
		`aggregation "sum"`:                {TraceInput{LP: one, Old: one, Advantages: one}, unknown},
		"aggregation token_mean divides":   {TraceInput{LP: one, Old: one, Advantages: one}, empty},
		`token 0: loss "reinforce"`:        {TraceInput{LP: one, Old: one, Advantages: one}, wrong},
		"kept has 2 tokens":                {TraceInput{LP: one, Old: one, Advantages: one, Kept: []bool{true, true}}, ppo()},
		"reference has 2 tokens":           {TraceInput{LP: one, Old: one, Advantages: one, Reference: two}, ppo()},
		"entropy has 2 tokens, want 1":     {TraceInput{LP: one, Old: one, Advantages: one, Entropy: two}, ppo()},
		"rollout has 2 tokens, want 1":     {TraceInput{LP: one, Old: one, Advantages: one, Rollout: two}, ppo()},
		"old is needed by loss nll":        {TraceInput{LP: one, Covariance: []bool{true}}, StepOptions{Loss: NLL}},
		"advantages has 2 values, want 1 ": {TraceInput{LP: one, Old: one, Advantages: two}, ppo()},
	} {
		_, err := LossOfTrace(c.in, c.o)
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("want %q, got %v", part, err)
		}
	}
}

func TestLossNeedsNothingForNLL(t *testing.T) {
	o := StepOptions{Loss: NLL, Aggregation: TokenMean, Denominators: Denominators{Tokens: 2, Sequences: 1}}
	got := lossOf(t, TraceInput{LP: []float64{-1, -3}}, o)
	near(t, "nll", got.Sums.Policy, 2, 0)
	relative(t, "gradient", got.GradLP, []float64{-0.5, -0.5}, 0)
}

func TestLossSumsShowWhatIsNotFinite(t *testing.T) {
	in := TraceInput{LP: []float64{math.NaN(), -1}, Old: []float64{-1, -1}, Advantages: []float64{1}}
	if got := lossOf(t, in, ppo()); got.Sums.Finite() {
		t.Errorf("sums %+v", got.Sums)
	}
	in.LP[0] = -1
	if got := lossOf(t, in, ppo()); !got.Sums.Finite() {
		t.Errorf("sums %+v", got.Sums)
	}
}

func TestReportOfSums(t *testing.T) {
	s := LossSums{Policy: 1, KL: 2, Bonus: -0.5, Tokens: 4, Behaviour: 2, Reference: 8, Entropy: 6, Clamped: 1, Low: 1, High: 2, Dual: 4,
		Gap: GapSums{Tokens: 4, W: 5, WMax: 3, Outside: 1, Difference: 2}}
	want := Report{Loss: 2.5, PolicyLoss: 1, KLLoss: 2, Tokens: 4, KLBehaviour: 0.5, KLReference: 2, Entropy: 1.5, KLClamped: 0.25,
		ClipLow: 0.25, ClipHigh: 0.5, ClipDual: 1, Gap: Gap{WMean: 1.25, WMax: 3, Truncated: 0.25, KL: 0.5}}
	if got := s.Report(); got != want {
		t.Errorf("report %+v, want %+v", got, want)
	}
	if got := (LossSums{}).Report(); got != (Report{}) {
		t.Errorf("report of nothing %+v", got)
	}
}
