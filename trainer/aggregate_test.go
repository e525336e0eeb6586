package trainer

import (
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// weigh aggregates rows of token values by TokenWeight.
func weigh(t tb, how Aggregation, rows [][]float64, maxTokens int) float64 {
	t.Helper()
	d := Denominators{MaxTokens: maxTokens}
	for _, r := range rows {
		d.Tokens += len(r)
		if len(r) > 0 {
			d.Sequences++
		}
	}
	sum := 0.0
	for _, r := range rows {
		w, err := how.TokenWeight(d, len(r))
		if err != nil {
			t.Fatalf("weight: %v", err)
		}
		for _, x := range r {
			sum += w * x
		}
	}
	return sum
}

// Rows [1,2,3 | 4 | empty] padded to 5: the specification's numbers. TRL would
// count the empty row (seq mean 2.0); we follow verl.
func TestAggregationWorkedNumbers(t *testing.T) {
	rows := [][]float64{{1, 2, 3}, {4}, {}}
	for how, want := range map[Aggregation]float64{TokenMean: 2.5, SeqMeanTokenSum: 5, SeqMeanTokenMean: 3, SeqMeanTokenSumNorm: 1} {
		near(t, string(how), weigh(t, how, rows, 5), want, 1e-15)
	}
}

func TestAggregationRefuses(t *testing.T) {
	for part, c := range map[string]struct {
		how Aggregation
		d   Denominators
	}{
		`aggregation "mean"`: {"mean", Denominators{1, 1, 1}},
		"tokens 0":           {TokenMean, Denominators{0, 1, 1}},
		"sequences 0":        {SeqMeanTokenSum, Denominators{1, 0, 1}},
		"sequences -1":       {SeqMeanTokenMean, Denominators{1, -1, 1}},
		"max tokens 0":       {SeqMeanTokenSumNorm, Denominators{1, 1, 0}},
	} {
		if w, err := c.how.TokenWeight(c.d, 3); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("want %q, got %v (%v)", part, err, w)
		}
	}
	if w, err := TokenMean.TokenWeight(Denominators{}, 0); err != nil || w != 0 {
		t.Errorf("no tokens: %v (%v)", w, err)
	}
}

// Any split over micro-batches adds up to the same number.
func TestAggregationOfConstantsIsThatConstant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lengths := rapid.SliceOfN(rapid.IntRange(0, 9), 1, 8).Draw(t, "lengths")
		lengths[0]++
		value := rapid.Float64Range(-3, 3).Draw(t, "value")
		var rows [][]float64
		total, sequences := 0, 0
		for _, n := range lengths {
			rows = append(rows, repeat(value, n))
			total += n
			if n > 0 {
				sequences++
			}
		}
		near(t, "token mean", weigh(t, TokenMean, rows, 9), value, 1e-12)
		near(t, "mean of means", weigh(t, SeqMeanTokenMean, rows, 9), value, 1e-12)
		sum := value * float64(total) / float64(sequences)
		near(t, "mean of sums", weigh(t, SeqMeanTokenSum, rows, 9), sum, 1e-11)
		near(t, "normalised", weigh(t, SeqMeanTokenSumNorm, rows, 9), sum/9, 1e-12)
	})
}

func TestCountDenominators(t *testing.T) {
	seq := func(n int, mask ...bool) Sequence {
		s := Sequence{Tokens: make([]int32, n)}
		if len(mask) > 0 {
			s.Mask = mask
		}
		return s
	}
	groups := []Group{
		{Traces: []Sequence{seq(3), seq(2, true, false), seq(0)}},
		{Traces: []Sequence{seq(5), seq(2, false, false)}},
	}
	if got, want := CountDenominators(groups, 16, nil), (Denominators{Tokens: 9, Sequences: 3, MaxTokens: 16}); got != want {
		t.Errorf("all: %+v, want %+v", got, want)
	}
	first := func(q int) bool { return q == 0 }
	if got, want := CountDenominators(groups, 16, first), (Denominators{Tokens: 4, Sequences: 2, MaxTokens: 16}); got != want {
		t.Errorf("informative: %+v, want %+v", got, want)
	}
	if got := CountDenominators(nil, 1, nil); got != (Denominators{MaxTokens: 1}) {
		t.Errorf("nothing: %+v", got)
	}
}

func TestCorrectionWeights(t *testing.T) {
	old, sampled := []float64{math.Log(0.9), math.Log(0.5), math.Log(0.1)}, []float64{math.Log(0.3), math.Log(0.5), math.Log(0.4)}
	// w = 3, 1, 0.25; their product is 0.75.
	for _, c := range []struct {
		name    string
		c       Correction
		weights []float64
		outside int
		mean    float64
	}{
		{"off", Correction{}, []float64{1, 1, 1}, 1, 4.25 / 3},
		{"token", Correction{Level: "token", Mode: "truncate", Upper: 2}, []float64{2, 1, 0.25}, 1, 4.25 / 3},
		{"default bound", Correction{Level: "token", Mode: "truncate"}, []float64{2, 1, 0.25}, 1, 4.25 / 3},
		{"mask", Correction{Level: "token", Mode: "mask", Lower: 0.5, Upper: 4}, []float64{3, 1, 0}, 1, 4.25 / 3},
		{"mask above", Correction{Level: "token", Mode: "mask", Upper: 2}, []float64{0, 1, 0.25}, 1, 4.25 / 3},
		{"sequence", Correction{Level: "sequence", Mode: "truncate", Upper: 2}, []float64{0.75, 0.75, 0.75}, 0, 0.75},
		{"sequence mask", Correction{Level: "sequence", Mode: "mask", Lower: 0.8, Upper: 2}, []float64{0, 0, 0}, 3, 0.75},
	} {
		weights, sums, err := c.c.Weights(old, sampled, nil)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		relative(t, c.name, weights, c.weights, 1e-12)
		gap := sums.Gap()
		near(t, c.name+" mean", gap.WMean, c.mean, 1e-12)
		near(t, c.name+" outside", gap.Truncated, float64(c.outside)/3, 1e-12)
		near(t, c.name+" KL", gap.KL, -math.Log(0.75)/3, 1e-12)
	}
}

func TestCorrectionLeavesMaskedTokensOut(t *testing.T) {
	nan := math.NaN()
	weights, sums, err := Correction{Level: "sequence", Mode: "truncate", Upper: 9}.Weights([]float64{-1, nan, -1}, []float64{-2, nan, -1}, []bool{true, false, true})
	if err != nil {
		t.Fatal(err)
	}
	relative(t, "weights", weights, []float64{math.E, 1, math.E}, 1e-12)
	if sums.Tokens != 2 || math.IsNaN(sums.W) {
		t.Errorf("sums %+v", sums)
	}
	if got := (GapSums{}).Gap(); got != (Gap{}) {
		t.Errorf("gap of nothing %+v", got)
	}
	if _, _, err := (Correction{}).Weights([]float64{1}, nil, nil); err == nil {
		t.Error("slices of different length were accepted")
	}
	if _, _, err := (Correction{}).Weights([]float64{1}, []float64{1}, []bool{}); err == nil {
		t.Error("a mask of another length was accepted")
	}
}

func TestCorrectionIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 10).Draw(t, "n")
		old := rapid.SliceOfN(rapid.Float64Range(-60, 0), n, n).Draw(t, "old")
		sampled := rapid.SliceOfN(rapid.Float64Range(-60, 0), n, n).Draw(t, "rollout")
		c := Correction{Level: rapid.SampledFrom([]string{"token", "sequence"}).Draw(t, "level"),
			Mode: rapid.SampledFrom([]string{"truncate", "mask"}).Draw(t, "mode"), Lower: 0.1, Upper: 3}
		weights, sums, err := c.Weights(old, sampled, nil)
		if err != nil {
			t.Fatalf("%v", err)
		}
		for _, w := range weights {
			if w < 0 || w > 3 || (c.Mode == "mask" && w != 0 && w < 0.1) {
				t.Fatalf("weight %v", w)
			}
		}
		if sums.WMax > math.Exp(20)*1.0001 || sums.WMax < sums.W/float64(n)*(1-1e-12) {
			t.Fatalf("sums %+v", sums)
		}
		same, _, _ := c.Weights(old, old, nil)
		relative(t, "the same engine", same, repeat(1, n), 0)
	})
}
