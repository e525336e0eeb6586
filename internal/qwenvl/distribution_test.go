package qwenvl

import (
	"math"
	"slices"
	"sort"
	"testing"

	"gonum.org/v1/gonum/stat/distuv"
	"pgregory.net/rapid"
)

// exact is the processed distribution in float64, written after the definitions
// of vLLM's documentation, one option after the other.
func exact(z []float64, o Sampling) []float64 {
	p := make([]float64, len(z))
	if o.Temperature < greedyBelow {
		softmaxInto(p, z)
		return p
	}
	scaled := make([]float64, len(z))
	for i, v := range z {
		scaled[i] = v / max(o.Temperature, leastTemperature)
	}
	softmaxInto(p, scaled)
	drop := func(keep func(i int) bool) {
		for i := range scaled {
			if !keep(i) {
				scaled[i] = math.Inf(-1)
			}
		}
		softmaxInto(p, scaled)
	}
	if o.MinP > 0 {
		least := o.MinP * slices.Max(p)
		before := slices.Clone(p)
		drop(func(i int) bool { return before[i] >= least })
	}
	order := make([]int, len(z))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool { return scaled[order[a]] > scaled[order[b]] })
	if o.TopK > 0 && o.TopK < len(z) {
		least := scaled[order[o.TopK-1]]
		drop(func(i int) bool { return scaled[i] >= least })
	}
	if o.TopP > 0 && o.TopP < 1 {
		keep, gathered := map[int]bool{}, 0.0
		for _, i := range order {
			if gathered < o.TopP {
				keep[i] = true
			}
			gathered += p[i]
		}
		drop(func(i int) bool { return keep[i] })
	}
	return p
}

func softmaxInto(p, z []float64) {
	top, sum := slices.Max(z), 0.0
	for i, v := range z {
		p[i] = math.Exp(v - top)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
}

// drawOptions draws logits and options that leave no decision to rounding:
// cuts lie well between two probabilities.
func drawOptions(r *rapid.T) ([]float32, Sampling) {
	n := rapid.IntRange(1, 40).Draw(r, "tokens")
	z := make([]float32, n)
	for i := range z { // multiples of 1/8, so ties are frequent and exact
		z[i] = float32(rapid.IntRange(-64, 64).Draw(r, "logit")) / 8
	}
	o := Sampling{Temperature: rapid.SampledFrom([]float64{0, 1e-6, 0.005, 0.25, 0.5, 1, 2, 8}).Draw(r, "temperature")}
	if rapid.Bool().Draw(r, "cut by k") {
		o.TopK = rapid.IntRange(-1, n+2).Draw(r, "k")
	}
	if rapid.Bool().Draw(r, "cut by p") {
		o.TopP = rapid.SampledFrom([]float64{1e-12, 0.1234567, 0.5012345, 0.9000123, 0.9999999, 1}).Draw(r, "p")
	}
	if rapid.Bool().Draw(r, "cut by least") {
		o.MinP = rapid.SampledFrom([]float64{1e-9, 0.0123457, 0.3456789, 1}).Draw(r, "min p")
	}
	return z, o
}

// The sampler reports and follows the exact distribution: every token of
// probability 0 is never drawn, log-probability and entropy agree, and each
// draw is the token at which the exact cumulated probability passes u.
func TestSamplerAgainstExactDistribution(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		z, o := drawOptions(r)
		wide := make([]float64, len(z))
		for i, v := range z {
			wide[i] = float64(v)
		}
		p := exact(wide, o)
		s := newSampler(len(z))
		u := rapid.Float64Range(0, math.Nextafter(1, 0)).Draw(r, "u")
		logits := padded(z...)
		d, logNorm := s.draw(logits, &o, history{}, u)
		entropy := 0.0
		for i, q := range p {
			got := math.Exp(float64(logits[i]) - logNorm)
			if math.Abs(got-q) > 1e-5 || (q == 0) != (got == 0) && q > 1e-30 {
				r.Fatalf("%v under %+v: token %d has probability %v, want %v", z, o, i, got, q)
			}
			if q > 0 {
				entropy -= q * math.Log(q)
			}
		}
		if math.Abs(float64(d.entropy)-entropy) > 1e-4 || math.Abs(float64(d.logProb)-math.Log(p[d.token])) > 1e-4 {
			r.Fatalf("%v under %+v: %+v, want entropy %v, log-probability %v", z, o, d, entropy, math.Log(p[d.token]))
		}
		below := 0.0
		for _, q := range p[:d.token] {
			below += q
		}
		if !o.greedy() && (u < below-1e-5 || u > below+p[d.token]+1e-5) {
			r.Fatalf("%v under %+v: u %v gives token %d, which lies at %v to %v", z, o, u, d.token, below, below+p[d.token])
		}
		if o.greedy() && z[d.token] != slices.Max(z) {
			r.Fatalf("greedy took %d of %v", d.token, z)
		}
	})
}

// Frequencies over the seeds of a run follow the exact multinomial under every
// kind of truncation, by chi squared at one in a million.
func TestFrequenciesFollowTheMultinomial(t *testing.T) {
	z := []float32{0.3, 2, -1, 1.1, 0, -3, 1.9, 0.7, -0.2, 1.5}
	wide := make([]float64, len(z))
	for i, v := range z {
		wide[i] = float64(v)
	}
	for seed, o := range []Sampling{{Temperature: 1}, {Temperature: 0.5}, {Temperature: 1.7}, {Temperature: 1, TopK: 4},
		{Temperature: 1, TopP: 0.7}, {Temperature: 1, MinP: 0.2}, {Temperature: 2, TopK: 8, TopP: 0.9, MinP: 0.05}} {
		p, s := exact(wide, o), newSampler(len(z))
		const n = 60_000
		counts := make([]float64, len(z))
		for i := range uint64(n) {
			// As the engine does: trace i of a job draws its token t from seed + i.
			d, _ := s.draw(padded(z...), &o, history{}, uniform(uint64(seed)<<40+i/50, i%50))
			counts[d.token]++
		}
		chi, kinds := 0.0, 0
		for i, q := range p {
			if q == 0 {
				if counts[i] > 0 {
					t.Errorf("%+v: token %d was cut and drawn %v times", o, i, counts[i])
				}
				continue
			}
			chi += (counts[i] - n*q) * (counts[i] - n*q) / (n * q)
			kinds++
		}
		if tail := (distuv.ChiSquared{K: float64(kinds - 1)}).Survival(chi); tail < 1e-6 {
			t.Errorf("%+v: chi squared %v over %d tokens, probability %v", o, chi, kinds, tail)
		}
	}
}

// Logits that an option lifts beyond the largest number are still a
// distribution.
func TestLiftedLogitsStayFinite(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		z, o := drawOptions(r)
		h := history{}
		for i := range z {
			h.prompt = append(h.prompt, int32(i))
		}
		o.MaxTokens = 1
		o.RepetitionPenalty = rapid.SampledFrom([]float64{1e-44, 1e-38, 1e-20, 1, 1e20, math.MaxFloat32}).Draw(r, "penalty")
		for range rapid.IntRange(0, 3).Draw(r, "biases") {
			o.Bias = append(o.Bias, TokenBias{int32(rapid.IntRange(0, len(z)-1).Draw(r, "token")),
				rapid.SampledFrom([]float32{math.MaxFloat32, -math.MaxFloat32, 1e30, 0}).Draw(r, "add")})
		}
		if err := o.Validate(len(z)); err != nil {
			r.Fatal(err)
		}
		logits := padded(z...)
		d, logNorm := newSampler(len(z)).draw(logits, &o, h, rapid.Float64Range(0, 0.999).Draw(r, "u"))
		if lp := float64(d.logProb); math.IsNaN(lp) || lp > 0 || math.IsNaN(float64(d.entropy)) || math.IsNaN(logNorm) || d.entropy < 0 {
			r.Fatalf("%v under %+v: %+v", z, o, d)
		}
	})
	for _, add := range []float64{math.Inf(1), math.Inf(-1), math.NaN()} {
		if err := (&Sampling{MaxTokens: 1, Bias: []TokenBias{{0, float32(add)}}}).Validate(3); err == nil {
			t.Errorf("a bias of %v is accepted", add)
		}
	}
}

// Prompts and answers at the very bounds of the model's length.
func TestLengthBounds(t *testing.T) {
	g := loadGolden(t)
	e := newEngine(t, g.model, Options{MaxLength: 40})
	rapid.Check(t, func(r *rapid.T) {
		request := Request{Prompt: make([]int32, rapid.IntRange(1, 42).Draw(r, "prompt")),
			Sampling: Sampling{Temperature: 1, MaxTokens: rapid.IntRange(1, 50).Draw(r, "max"), IgnoreEOS: true, Seeded: true}}
		request.Sampling.MinTokens = rapid.IntRange(0, request.Sampling.MaxTokens).Draw(r, "min")
		result, err := e.Generate(deadline(t), request)
		room := 40 - len(request.Prompt)
		if (err == nil) != (room > 0) {
			r.Fatalf("%d prompt tokens of 40: %v", len(request.Prompt), err)
		}
		if err != nil {
			return
		}
		if c := result.Choices[0]; len(c.Tokens) != min(room, request.Sampling.MaxTokens) || c.Finish != FinishLength {
			r.Fatalf("%d tokens, %s, with room for %d of %d", len(c.Tokens), c.Finish, room, request.Sampling.MaxTokens)
		}
	})
}
