package uadt

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func mustEntropy(t tb, logits []float64, temperature float64) float64 {
	t.Helper()
	h, err := TokenEntropy(logits, temperature)
	if err != nil {
		t.Fatalf("entropy of %v: %v", logits, err)
	}
	return h
}

func TestTokenEntropyWorkedNumbers(t *testing.T) {
	near(t, "H", mustEntropy(t, []float64{2, 1, 0, -1}, 1), 0.947536964, 1e-9)
	near(t, "H at twice the temperature", mustEntropy(t, []float64{4, 2, 0, -2}, 2), 0.947536964, 1e-9)
	near(t, "H of one id", mustEntropy(t, []float64{3}, 1), 0, 0)
	near(t, "H of two alike", mustEntropy(t, []float64{3, 3}, 1), math.Ln2, 1e-15)
}

func TestTokenEntropyBannedIDs(t *testing.T) {
	inf := math.Inf(-1)
	got := mustEntropy(t, []float64{inf, 2, inf, 1, 0, -1}, 1)
	near(t, "H with banned ids", got, mustEntropy(t, []float64{2, 1, 0, -1}, 1), 1e-15)
	near(t, "H of the one id left", mustEntropy(t, []float64{inf, 2, inf}, 1), 0, 0)
}

// The naive log(softmax) is -Inf or NaN on all of these.
func TestTokenEntropyIsStable(t *testing.T) {
	for _, c := range []struct {
		name   string
		logits []float64
		want   float64
	}{
		{"large", []float64{1e6, 1e6}, math.Ln2},
		{"largest", []float64{1e300, 1e300, 1e300, 1e300}, math.Log(4)},
		{"very negative", []float64{-1e6, -1e6}, math.Ln2},
		{"one dominates", []float64{0, -1e5, -1e5}, 0},
		{"underflow", []float64{0, -800}, 0},
		{"opposite extremes", []float64{1e308, -1e308}, 0},
	} {
		near(t, c.name, mustEntropy(t, c.logits, 1), c.want, 1e-12)
	}
}

func TestTokenEntropyRefuses(t *testing.T) {
	inf := math.Inf(-1)
	for name, c := range map[string]struct {
		logits      []float64
		temperature float64
	}{
		"no logits":            {nil, 1},
		"NaN logit":            {[]float64{1, math.NaN()}, 1},
		"+Inf logit":           {[]float64{1, math.Inf(1)}, 1},
		"all banned":           {[]float64{inf, inf}, 1},
		"temperature 0":        {[]float64{1, 2}, 0},
		"temperature below 0":  {[]float64{1, 2}, -1},
		"temperature NaN":      {[]float64{1, 2}, math.NaN()},
		"temperature infinite": {[]float64{1, 2}, math.Inf(1)},
	} {
		if h, err := TokenEntropy(c.logits, c.temperature); err == nil {
			t.Errorf("%s: got %v, want an error", name, h)
		}
	}
}

func drawLogits(t *rapid.T) []float64 {
	return rapid.SliceOfN(rapid.Float64Range(-20, 20), 1, 40).Draw(t, "logits")
}

func TestTokenEntropyBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		z := drawLogits(t)
		h := mustEntropy(t, z, rapid.Float64Range(0.1, 5).Draw(t, "temperature"))
		if h < -1e-12 || h > math.Log(float64(len(z)))+1e-12 {
			t.Fatalf("H = %v of %d ids, outside [0, log n]", h, len(z))
		}
	})
}

func TestTokenEntropyInvariances(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		z := drawLogits(t)
		shift := rapid.Float64Range(-1000, 1000).Draw(t, "shift")
		moved, scaled := make([]float64, len(z)), make([]float64, len(z))
		for i := range z {
			moved[i], scaled[i] = z[i]+shift, 3*z[i]
		}
		h := mustEntropy(t, z, 1)
		near(t, "H of shifted logits", mustEntropy(t, moved, 1), h, 1e-9)
		near(t, "H of scaled logits and temperature", mustEntropy(t, scaled, 3), h, 1e-9)
		slices.Reverse(moved)
		near(t, "H of reversed logits", mustEntropy(t, moved, 1), h, 1e-9)
	})
}

// The definition itself, where nothing over- or underflows.
func TestTokenEntropyAgainstDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		z := drawLogits(t)
		sum, want := 0.0, 0.0
		for _, v := range z {
			sum += math.Exp(v)
		}
		for _, v := range z {
			p := math.Exp(v) / sum
			want -= p * math.Log(p)
		}
		near(t, "H", mustEntropy(t, z, 1), want, 1e-10)
	})
}

func TestTokenEntropyGrowsWithTemperature(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		z := drawLogits(t)
		cold := rapid.Float64Range(0.2, 2).Draw(t, "cold")
		hot := cold + rapid.Float64Range(0, 3).Draw(t, "more")
		if c, h := mustEntropy(t, z, cold), mustEntropy(t, z, hot); h < c-1e-9 {
			t.Fatalf("H %v at %v, %v at %v", c, cold, h, hot)
		}
	})
}

func logOf(p ...float64) []float64 {
	out := make([]float64, len(p))
	for i := range p {
		out[i] = math.Log(p[i])
	}
	return out
}

// logSoftmax is a test's own way from logits to log-probabilities.
func logSoftmax(z []float64) []float64 {
	sum := 0.0
	for _, v := range z {
		sum += math.Exp(v)
	}
	out := make([]float64, len(z))
	for i, v := range z {
		out[i] = v - math.Log(sum)
	}
	return out
}

func mustTopK(t tb, lp []float64, k int) float64 {
	t.Helper()
	h, err := TopKEntropy(lp, k)
	if err != nil {
		t.Fatalf("top %d of %v: %v", k, lp, err)
	}
	return h
}

func TestTopKEntropyWorkedNumbers(t *testing.T) {
	near(t, "p = (0.5, 0.3)", mustTopK(t, logOf(0.5, 0.3), 2), 1.029653, 5e-7)
	near(t, "logits [2, 1, 0, -1], k 2", mustTopK(t, logSoftmax([]float64{2, 1, 0, -1}), 2), 0.878136652, 1e-9)
	near(t, "one certain token", mustTopK(t, []float64{0}, 1), 0, 0)
	near(t, "zero probabilities", mustTopK(t, []float64{0, math.Inf(-1), math.Inf(-1)}, 3), 0, 0)
	near(t, "mass above 1 by rounding", mustTopK(t, []float64{math.Log(0.5), math.Log(0.5) + 1e-9}, 2), math.Ln2, 1e-8)
}

// A server returns the sampled token beside the k largest, and in any order.
func TestTopKEntropyUsesExactlyK(t *testing.T) {
	want := mustTopK(t, logOf(0.5, 0.3), 2)
	near(t, "k+1 values", mustTopK(t, logOf(0.5, 0.3, 0.001), 2), want, 0)
	near(t, "sampled token first", mustTopK(t, logOf(0.001, 0.5, 0.3), 2), want, 0)
	given := logOf(0.1, 0.5, 0.3)
	before := slices.Clone(given)
	mustTopK(t, given, 2)
	if !slices.Equal(given, before) {
		t.Errorf("the caller's slice was changed to %v", given)
	}
}

func TestTopKEntropyRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		lp []float64
		k  int
	}{
		"k 0":         {logOf(0.5), 0},
		"too few":     {logOf(0.5), 2},
		"NaN":         {[]float64{-1, math.NaN()}, 2},
		"above 0":     {[]float64{0.1, -1}, 2},
		"infinite":    {[]float64{math.Inf(1), -1}, 2},
		"none at all": {nil, 1},
	} {
		if h, err := TopKEntropy(c.lp, c.k); err == nil {
			t.Errorf("%s: got %v, want an error", name, h)
		}
	}
}

func TestTopKEntropyNeverExceedsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		z := drawLogits(t)
		exact, lp := mustEntropy(t, z, 1), logSoftmax(z)
		previous := 0.0
		for k := 1; k <= len(z); k++ {
			h := mustTopK(t, lp, k)
			if h > exact+1e-9 || h < previous-1e-9 {
				t.Fatalf("top %d gives %v, top %d %v, exact %v", k, h, k-1, previous, exact)
			}
			previous = h
		}
		near(t, "top n", previous, exact, 1e-7)
	})
}

func TestSurprisals(t *testing.T) {
	got := Surprisals([]float32{-1, 0, -0.25})
	if !slices.Equal(got, []float32{1, 0, 0.25}) {
		t.Errorf("surprisals %v", got)
	}
	if got := Surprisals(nil); len(got) != 0 {
		t.Errorf("surprisals of nothing: %v", got)
	}
}

// Weighted by its own probabilities, surprisal is the entropy.
func TestSurprisalIsUnbiased(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		z := drawLogits(t)
		expected := 0.0
		for _, lp := range logSoftmax(z) {
			expected += math.Exp(lp) * -lp
		}
		near(t, "expected surprisal", expected, mustEntropy(t, z, 1), 1e-9)
	})
}

func TestMeanEntropy(t *testing.T) {
	for _, c := range []struct {
		name   string
		values []float32
		span   []bool
		want   float64
		ok     bool
	}{
		{"all", []float32{1, 2, 3}, nil, 2, true},
		{"span", []float32{1, 2, 6}, []bool{true, false, true}, 3.5, true},
		{"empty span", []float32{1, 2}, []bool{false, false}, 0, false},
		{"no tokens", nil, nil, 0, false},
		{"rounded below 0", []float32{-1e-6, 1e-6}, nil, 0, true},
	} {
		h, ok, err := MeanEntropy(c.values, c.span)
		if err != nil || ok != c.ok {
			t.Errorf("%s: ok %v, error %v", c.name, ok, err)
		}
		near(t, c.name, h, c.want, 1e-12)
	}
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for name, c := range map[string]struct {
		values []float32
		span   []bool
	}{
		"NaN":                 {[]float32{1, nan}, nil},
		"NaN outside of span": {[]float32{1, nan}, []bool{true, false}},
		"infinite":            {[]float32{inf}, nil},
		"negative":            {[]float32{-0.5}, nil},
		"span too short":      {[]float32{1, 2}, []bool{true}},
	} {
		if h, _, err := MeanEntropy(c.values, c.span); err == nil {
			t.Errorf("%s: got %v, want an error", name, h)
		}
	}
}

// A long constant trace keeps its mean: float32 summation would not.
func TestMeanEntropyOfLongTrace(t *testing.T) {
	values := make([]float32, 1<<20)
	for i := range values {
		values[i] = 0.1
	}
	h, _, err := MeanEntropy(values, nil)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "H", h, float64(float32(0.1)), 1e-12)
}

func TestEstimatorNames(t *testing.T) {
	for name, k := range map[string]int{"exact": 0, "surprisal": 0, "topk1": 1, "topk20": 20} {
		e, err := ParseEstimator(name)
		if err != nil || e.K() != k {
			t.Errorf("%s: k %d, error %v", name, e.K(), err)
		}
	}
	for _, name := range []string{"", "topk", "topk0", "topk-3", "topk05", "topk 5", "top5", "Exact", "topk5.0"} {
		if e, err := ParseEstimator(name); err == nil {
			t.Errorf("%q was read as %q", name, e)
		}
	}
	if TopK(20) != "topk20" {
		t.Errorf("TopK(20) = %s", TopK(20))
	}
}
