package trainer

import (
	"math"

	"pgregory.net/rapid"
)

// tb is what helpers need of *testing.T and of *rapid.T.
type tb interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

func near(t tb, what string, got, want, tol float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tol) { // written so that NaN fails
		t.Errorf("%s = %.12g, want %.12g within %g", what, got, want, tol)
	}
}

// relative compares element by element, relative to values above 1.
func relative(t tb, what string, got, want []float64, tol float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	for i := range want {
		if !(math.Abs(got[i]-want[i]) <= tol*math.Max(1, math.Abs(want[i]))) {
			t.Errorf("%s [%d] = %.17g, want %.17g", what, i, got[i], want[i])
		}
	}
}

// ppo is the options of a plain clipped update.
func ppo() StepOptions {
	return StepOptions{Loss: PPO, ClipLow: 0.2, ClipHigh: 0.2, Aggregation: TokenMean,
		Denominators: Denominators{Tokens: 4, Sequences: 2, MaxTokens: 5}, Temperature: 1}
}

// lossOf returns the loss of a trace that must be accepted.
func lossOf(t tb, in TraceInput, o StepOptions) TraceLoss {
	t.Helper()
	l, err := LossOfTrace(in, o)
	if err != nil {
		t.Fatalf("loss: %v", err)
	}
	return l
}

// repeat returns n copies of x.
func repeat(x float64, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = x
	}
	return out
}

// drawInput draws one trace whose ratios lie off every clip bound, so that the
// loss is smooth around it.
func drawInput(t *rapid.T, o StepOptions) TraceInput {
	n := rapid.IntRange(1, 8).Draw(t, "tokens")
	draw := func(name string, low, high float64) []float64 {
		return rapid.SliceOfN(rapid.Float64Range(low, high), n, n).Draw(t, name)
	}
	in := TraceInput{LP: draw("lp", -4, -0.01), Entropy: draw("entropy", 0, 3), Reference: draw("ref", -4, -0.01), Rollout: draw("rollout", -4, -0.01)}
	in.Mask = rapid.SliceOfN(rapid.Bool(), n, n).Draw(t, "mask")
	in.Old = make([]float64, n)
	for i := range in.Old {
		in.Old[i] = in.LP[i] - rapid.SampledFrom([]float64{-1.5, -0.5, -0.1, -0.05, 0.03, 0.1, 0.4, 1.3}).Draw(t, "log ratio")
	}
	in.Advantages = rapid.SliceOfN(rapid.Float64Range(-2, 2), n, n).Draw(t, "A")
	if rapid.Bool().Draw(t, "one A") {
		in.Advantages = in.Advantages[:1]
	}
	if o.Covariance.Kind != CovarianceOff {
		in.Covariance = rapid.SliceOfN(rapid.Bool(), n, n).Draw(t, "covariance")
	}
	if rapid.Bool().Draw(t, "quantile") {
		in.Kept = rapid.SliceOfN(rapid.Bool(), n, n).Draw(t, "kept")
	}
	return in
}

func drawOptions(t *rapid.T) StepOptions {
	o := ppo()
	o.Loss = rapid.SampledFrom([]Loss{PPO, GSPO, CISPO, NLL}).Draw(t, "loss")
	o.Aggregation = rapid.SampledFrom([]Aggregation{TokenMean, SeqMeanTokenSum, SeqMeanTokenMean, SeqMeanTokenSumNorm}).Draw(t, "aggregation")
	o.ClipHigh = rapid.SampledFrom([]float64{0.2, 0.28}).Draw(t, "clip high")
	o.DualClip = rapid.SampledFrom([]float64{0, 3}).Draw(t, "dual clip")
	o.KL = KL{Kind: rapid.SampledFrom([]KLKind{KLOff, K2, K3}).Draw(t, "kl"), Coef: 0.1, Clamp: rapid.Bool().Draw(t, "clamp")}
	o.EntropyBonus = rapid.SampledFrom([]float64{0, 0.01}).Draw(t, "bonus")
	o.Correction = Correction{Level: rapid.SampledFrom([]string{"", "token", "sequence"}).Draw(t, "level"), Mode: "truncate", Upper: 2}
	if o.Loss != NLL {
		o.Covariance = Covariance{Kind: rapid.SampledFrom([]string{"", "clip", "kl"}).Draw(t, "covariance kind"), Share: 0.2, Coef: 0.5}
	}
	return o
}
