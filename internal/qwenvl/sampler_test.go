package qwenvl

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/uadt-train/uadt-train/internal/qwenvl/kernel"
)

// The first vector of the Random123 distribution for Philox4x32-10 (kat_vectors):
// zero counter and key, first two words.
func TestPhiloxKnownAnswer(t *testing.T) {
	if got := philox(0, 0); got != 0x6627e8d5_e169c58d {
		t.Errorf("philox(0, 0) = %x", got)
	}
}

func TestUniformIsUniformAndKeyed(t *testing.T) {
	const n = 20000
	var bins [10]int
	for i := range uint64(n) {
		u := uniform(7, i)
		if u < 0 || u >= 1 {
			t.Fatalf("draw %d is %v", i, u)
		}
		bins[int(u*10)]++
	}
	chi := 0.0
	for _, count := range bins {
		d := float64(count) - n/10
		chi += d * d / (n / 10)
	}
	if chi > 33.7 { // 9 degrees of freedom, one in ten thousand
		t.Errorf("chi squared %v, bins %v", chi, bins)
	}
	if uniform(7, 1) == uniform(8, 1) || uniform(7, 1) == uniform(7, 2) {
		t.Error("seed or counter does not matter")
	}
}

// padded returns logits with room for the padding.
func padded(z ...float32) []float32 {
	out := make([]float32, kernel.Pad(len(z)))
	copy(out, z)
	return out
}

func TestDrawReportsLogProbabilityAndEntropy(t *testing.T) {
	s := newSampler(3)
	for _, tc := range []struct {
		options Sampling
		scale   float64
	}{{Sampling{}, 1}, {Sampling{Temperature: 1}, 1}, {Sampling{Temperature: 0.5}, 2}, {Sampling{Temperature: 2}, 0.5}, {Sampling{Temperature: 0.001}, 100}} {
		d, _ := s.draw(padded(1, 2, 0.5), &tc.options, history{}, 0.7)
		want, entropy := logSoftmax([]float32{float32(1 * tc.scale), float32(2 * tc.scale), float32(0.5 * tc.scale)})
		if math.Abs(float64(d.logProb)-want[d.token]) > 1e-6 || math.Abs(float64(d.entropy)-entropy) > 1e-6 {
			t.Errorf("temperature %v: %+v, want %v %v", tc.options.Temperature, d, want, entropy)
		}
	}
}

func TestDrawFrequenciesFollowProbabilities(t *testing.T) {
	s := newSampler(4)
	const n = 40000
	counts := make([]float64, 4)
	z := []float32{0, 1, 2, -1}
	for i := range uint64(n) {
		d, _ := s.draw(padded(z...), &Sampling{Temperature: 1}, history{}, uniform(3, i))
		counts[d.token]++
	}
	logp, _ := logSoftmax(z)
	for i, count := range counts {
		p := math.Exp(logp[i])
		if sd := math.Sqrt(p * (1 - p) / n); math.Abs(count/n-p) > 5*sd {
			t.Errorf("token %d: frequency %v, probability %v", i, count/n, p)
		}
	}
}

func TestGreedyTakesTheLowestIDOnTies(t *testing.T) {
	d, _ := newSampler(4).draw(padded(1, 3, 3, 2), &Sampling{}, history{}, 0.99)
	if d.token != 1 {
		t.Errorf("token %d, want 1", d.token)
	}
}

func TestPickAtTheEnds(t *testing.T) {
	s := newSampler(4)
	options := Sampling{Temperature: 1, Banned: []int32{0, 3}}
	if d, _ := s.draw(padded(1, 1, 1, 1), &options, history{}, 0); d.token != 1 {
		t.Errorf("u = 0 gives %d, want 1", d.token)
	}
	if d, _ := s.draw(padded(1, 1, 1, 1), &options, history{}, math.Nextafter(1, 0)); d.token != 2 {
		t.Errorf("u -> 1 gives %d, want 2", d.token)
	}
	s.exps = padded(1, 0, 0, 0)
	if got := s.pick(2); got != 0 {
		t.Errorf("past the sum: %d, want the last possible token 0", got)
	}
}

func kept(s *sampler, z []float32, options Sampling) []int32 {
	logits := padded(z...)
	s.draw(logits, &options, history{}, 0.5)
	var ids []int32
	for i := range z {
		if !math.IsInf(float64(logits[i]), -1) {
			ids = append(ids, int32(i))
		}
	}
	return ids
}

func TestTruncation(t *testing.T) {
	s := newSampler(5)
	// Probabilities 0.4, 0.3, 0.15, 0.1, 0.05.
	var z []float32
	for _, p := range []float64{0.15, 0.4, 0.05, 0.3, 0.1} {
		z = append(z, float32(math.Log(p)))
	}
	for _, tc := range []struct {
		name    string
		options Sampling
		want    []int32
	}{
		{"none", Sampling{Temperature: 1}, []int32{0, 1, 2, 3, 4}},
		{"top k", Sampling{Temperature: 1, TopK: 2}, []int32{1, 3}},
		{"top k beyond", Sampling{Temperature: 1, TopK: 9}, []int32{0, 1, 2, 3, 4}},
		{"top k off", Sampling{Temperature: 1, TopK: -1}, []int32{0, 1, 2, 3, 4}},
		{"top p", Sampling{Temperature: 1, TopP: 0.6}, []int32{1, 3}},
		{"top p keeps one", Sampling{Temperature: 1, TopP: 0.01}, []int32{1}},
		{"min p", Sampling{Temperature: 1, MinP: 0.3}, []int32{0, 1, 3}},
		{"k then p", Sampling{Temperature: 1, TopK: 3, TopP: 0.5}, []int32{1, 3}},
		{"allowed", Sampling{Temperature: 1, Allowed: []int32{2, 4}}, []int32{2, 4}},
		{"banned", Sampling{Temperature: 1, Banned: []int32{1}}, []int32{0, 2, 3, 4}},
	} {
		if got := kept(s, z, tc.options); !slices.Equal(got, tc.want) {
			t.Errorf("%s: kept %v, want %v", tc.name, got, tc.want)
		}
	}
	if got := kept(s, []float32{1, 1, 1, 0, 0}, Sampling{Temperature: 1, TopK: 2}); !slices.Equal(got, []int32{0, 1, 2}) {
		t.Errorf("ties with the last of the top k: kept %v", got)
	}
}

func TestPenaltiesAndBias(t *testing.T) {
	s := newSampler(4)
	z := []float32{2, -2, 1, 0}
	h := history{prompt: []int32{0, 1}, response: []int32{2, 2}, ends: []int32{3}}
	for _, tc := range []struct {
		name    string
		options Sampling
		want    []float32
	}{
		{"repetition", Sampling{RepetitionPenalty: 2}, []float32{1, -4, 0.5, 0}},
		{"presence", Sampling{PresencePenalty: 0.25}, []float32{2, -2, 0.75, 0}},
		{"frequency", Sampling{FrequencyPenalty: 0.25}, []float32{2, -2, 0.5, 0}},
		{"bias", Sampling{Bias: []TokenBias{{1, 5}}}, []float32{2, 3, 1, 0}},
		{"minimum", Sampling{MinTokens: 3}, []float32{2, -2, 1, minusInf}},
		{"minimum reached", Sampling{MinTokens: 2}, []float32{2, -2, 1, 0}},
	} {
		got := slices.Clone(z)
		s.process(got, &tc.options, h)
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestEverythingBanned(t *testing.T) {
	d, _ := newSampler(2).draw(padded(1, 2), &Sampling{Temperature: 1, Banned: []int32{0, 1}}, history{}, 0.5)
	if d.token != 0 || !math.IsInf(float64(d.logProb), -1) {
		t.Errorf("%+v", d)
	}
}

func TestTopListsByFallingProbability(t *testing.T) {
	const n = 60
	s := newSampler(n)
	z := make([]float32, n)
	for i := range z {
		z[i] = float32((i * 37) % n)
	}
	logits := padded(z...)
	_, logNorm := s.draw(logits, &Sampling{Temperature: 1}, history{}, 0.5)
	all := s.top(nil, logits, -1, logNorm)
	if len(all) != n {
		t.Fatalf("all: %d entries", len(all))
	}
	logp, _ := logSoftmax(z)
	for i, entry := range all {
		if i > 0 && entry.LogProb > all[i-1].LogProb || math.Abs(float64(entry.LogProb)-logp[entry.Token]) > 1e-5 {
			t.Errorf("entry %d: %+v, want %v", i, entry, logp[entry.Token])
		}
	}
	for k := range 20 {
		if got := s.top(nil, logits, k, logNorm); !slices.Equal(got, all[:k]) {
			t.Errorf("top %d: %v", k, got)
		}
	}
}

func TestValidateReportsEverything(t *testing.T) {
	err := (&Sampling{Temperature: -1, TopP: 2, MinP: -1, PresencePenalty: 3, FrequencyPenalty: -3, RepetitionPenalty: -1}).Validate(5)
	if !errors.Is(err, ErrSampling) {
		t.Fatal(err)
	}
	if problems := err.(interface{ Unwrap() []error }).Unwrap(); len(problems) != 7 {
		t.Errorf("%d problems: %v", len(problems), err)
	}
}
