package trainer

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
)

// The types below mirror trainertest/testdata/loss_vectors.json: updates whose
// losses PyTorch's autograd differentiated in float64.
type vectorCase struct {
	Options vectorOptions
	Traces  []struct {
		LP, Old, Rollout, Reference, Entropy, Advantages []float64
		Mask, Kept, Covariance                           []bool
	}
	Want struct {
		Policy, KL, Bonus float64
		KLSum             float64 `json:"kl_sum"`
		EntropySum        float64 `json:"entropy_sum"`
		Tokens, Sequences int
		GradLP            [][]float64 `json:"grad_lp"`
		GradEntropy       [][]float64 `json:"grad_entropy"`
		GapW              float64     `json:"gap_w"`
		GapMax            float64     `json:"gap_max"`
		GapOutside        int         `json:"gap_outside"`
		GapDifference     float64     `json:"gap_difference"`
	}
}

type vectorOptions struct {
	Loss, Aggregation, KL string
	ClipLow               float64 `json:"clip_low"`
	ClipHigh              float64 `json:"clip_high"`
	DualClip              float64 `json:"dual_clip"`
	KLCoef                float64 `json:"kl_coef"`
	KLClamp               bool    `json:"kl_clamp"`
	MaxTokens             int     `json:"max_tokens"`
	CorrectionLevel       string  `json:"correction_level"`
	CorrectionMode        string  `json:"correction_mode"`
	CorrectionLower       float64 `json:"correction_lower"`
	CorrectionUpper       float64 `json:"correction_upper"`
	CovarianceKind        string  `json:"covariance_kind"`
	CovarianceCoef        float64 `json:"covariance_coef"`
	EntropyBonus          float64 `json:"entropy_bonus"`
}

func (v vectorCase) options() StepOptions {
	o := v.Options
	return StepOptions{
		Loss: Loss(o.Loss), ClipLow: o.ClipLow, ClipHigh: o.ClipHigh, DualClip: o.DualClip,
		KL:           KL{Kind: KLKind(o.KL), Coef: o.KLCoef, Clamp: o.KLClamp},
		Aggregation:  Aggregation(o.Aggregation),
		Denominators: Denominators{Tokens: v.Want.Tokens, Sequences: v.Want.Sequences, MaxTokens: o.MaxTokens},
		Correction:   Correction{Level: o.CorrectionLevel, Mode: o.CorrectionMode, Lower: o.CorrectionLower, Upper: o.CorrectionUpper},
		Covariance:   Covariance{Kind: o.CovarianceKind, Share: 0.3, Coef: o.CovarianceCoef},
		EntropyBonus: o.EntropyBonus, Temperature: 1,
	}
}

func loadVectors(t *testing.T) []vectorCase {
	t.Helper()
	data, err := os.ReadFile("trainertest/testdata/loss_vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []vectorCase
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	return cases
}

func TestLossAgreesWithAutograd(t *testing.T) {
	const tol = 1e-12
	cases := loadVectors(t)
	if len(cases) < 50 {
		t.Fatalf("only %d cases", len(cases))
	}
	for n, v := range cases {
		o := v.options()
		if err := o.Validate(); err != nil {
			t.Fatalf("case %d: %v", n, err)
		}
		var sums LossSums
		where := func(what string) string { return fmt.Sprintf("case %d (%s, %s): %s", n, o.Loss, o.Aggregation, what) }
		for i, x := range v.Traces {
			got, err := LossOfTrace(TraceInput{LP: x.LP, Entropy: x.Entropy, Old: x.Old, Reference: x.Reference, Rollout: x.Rollout,
				Advantages: x.Advantages, Mask: x.Mask, Kept: x.Kept, Covariance: x.Covariance}, o)
			if err != nil {
				t.Fatalf("%s", where(err.Error()))
			}
			relative(t, where("d loss/d lp"), got.GradLP, v.Want.GradLP[i], tol)
			if o.EntropyBonus != 0 {
				relative(t, where("d loss/d entropy"), got.GradEntropy, v.Want.GradEntropy[i], tol)
			}
			sums.Add(got.Sums)
		}
		relative(t, where("policy, kl, bonus"), []float64{sums.Policy, sums.KL, sums.Bonus}, []float64{v.Want.Policy, v.Want.KL, v.Want.Bonus}, tol)
		relative(t, where("sums"), []float64{sums.Reference, sums.Entropy}, []float64{v.Want.KLSum, v.Want.EntropySum}, tol)
		relative(t, where("gap"), []float64{sums.Gap.W, sums.Gap.WMax, float64(sums.Gap.Outside), sums.Gap.Difference},
			[]float64{v.Want.GapW, v.Want.GapMax, float64(v.Want.GapOutside), v.Want.GapDifference}, tol)
		if sums.Tokens != v.Want.Tokens {
			t.Errorf("%s: %d, want %d", where("tokens"), sums.Tokens, v.Want.Tokens)
		}
		if t.Failed() {
			return
		}
	}
}

// The vectors are only worth something if every branch is in them.
func TestVectorsCoverTheBranches(t *testing.T) {
	var sums LossSums
	seen := map[string]bool{}
	for _, v := range loadVectors(t) {
		o := v.options()
		seen[string(o.Loss)+"/"+string(o.Aggregation)] = true
		seen["kl "+string(o.KL.Kind)] = true
		seen["covariance "+o.Covariance.Kind] = true
		seen["correction "+o.Correction.Level+" "+o.Correction.Mode] = true
		for _, x := range v.Traces {
			seen["kept"] = seen["kept"] || x.Kept != nil
			seen["empty"] = seen["empty"] || len(x.LP) == 0
			seen["per token"] = seen["per token"] || len(x.Advantages) > 1
			got, err := LossOfTrace(TraceInput{LP: x.LP, Entropy: x.Entropy, Old: x.Old, Reference: x.Reference, Rollout: x.Rollout,
				Advantages: x.Advantages, Mask: x.Mask, Kept: x.Kept, Covariance: x.Covariance}, o)
			if err != nil {
				t.Fatal(err)
			}
			sums.Add(got.Sums)
		}
	}
	for _, l := range []Loss{PPO, GSPO, CISPO, NLL} {
		for _, a := range []Aggregation{TokenMean, SeqMeanTokenSum, SeqMeanTokenMean, SeqMeanTokenSumNorm} {
			if !seen[string(l)+"/"+string(a)] {
				t.Errorf("no vector has %s with %s", l, a)
			}
		}
	}
	for _, what := range []string{"kl ", "kl k2", "kl k3", "covariance ", "covariance clip", "covariance kl", "kept", "empty", "per token",
		"correction token truncate", "correction token mask", "correction sequence truncate", "correction sequence mask"} {
		if !seen[what] {
			t.Errorf("no vector has %q", what)
		}
	}
	if sums.Low == 0 || sums.High == 0 || sums.Dual == 0 || sums.Clamped == 0 || sums.Gap.Outside == 0 {
		t.Errorf("a bound is never reached: %+v", sums)
	}
}
