package qwenvl

import (
	"math"
	"slices"

	"github.com/uadt-train/uadt-train/internal/qwenvl/kernel"
)

// sampler draws tokens. It holds working memory for one goroutine.
type sampler struct {
	vocabulary int
	exps       []float32 // [Pad(vocabulary)] unnormalised probabilities
	order      []int32   // sort space
	seen       []uint32  // token -> stamp, for penalties and allowed sets
	stamp      uint32
}

func newSampler(vocabulary int) *sampler {
	return &sampler{vocabulary: vocabulary, exps: make([]float32, kernel.Pad(vocabulary)),
		order: make([]int32, vocabulary), seen: make([]uint32, vocabulary)}
}

// drawn is one sampled token: its log-probability under, and the entropy (nats)
// of, the processed distribution, that is after bias, bans, penalties,
// temperature and truncation.
type drawn struct {
	token            int32
	logProb, entropy float32
}

// draw processes logits ([Pad(vocabulary)], overwritten by the processed
// log-probabilities shifted by a constant, which draw also returns) and samples
// with uniform number u. options must be valid.
func (s *sampler) draw(logits []float32, options *Sampling, history history, u float64) (d drawn, logNorm float64) {
	fill(logits[s.vocabulary:], minusInf)
	z := logits[:s.vocabulary]
	s.process(z, options, history)
	greedy := options.greedy()
	if !greedy {
		if t := float32(max(options.Temperature, leastTemperature)); t != 1 {
			for i := range z {
				z[i] /= t
			}
		}
		bound(z, options)
		s.truncate(logits, options)
	} else {
		bound(z, options)
	}
	best := argmax(z)
	top := z[best]
	if math.IsInf(float64(top), -1) {
		// Everything is banned: vLLM would sample from NaN; take token 0.
		return drawn{token: 0, logProb: minusInf}, 0
	}
	kernel.ExpSub(s.exps, logits, 1, top)
	total, weighted := s.sums(z, top)
	logTotal := math.Log(total)
	token := best
	if !greedy {
		token = s.pick(u * total)
	}
	logNorm = float64(top) + logTotal
	return drawn{token: int32(token), logProb: float32(float64(z[token]) - logNorm),
		// H = -sum p log p = log Z - sum e^(z-top) (z-top) / Z: every term is
		// finite and the result cannot fall below 0 by more than rounding.
		entropy: float32(max(0, logTotal-weighted/total))}, logNorm
}

// bound brings logits that a bias or a small repetition penalty has lifted to
// +Inf back to the largest number: the differences of two infinities, and with
// them all probabilities, would be NaN.
func bound(z []float32, options *Sampling) {
	if len(options.Bias) == 0 && (options.RepetitionPenalty == 0 || options.RepetitionPenalty >= 1) {
		return
	}
	for i, v := range z {
		z[i] = min(v, math.MaxFloat32)
	}
}

// sums returns sum(e) and sum(e * (z - top)) in float64, over four running sums
// in a fixed order.
func (s *sampler) sums(z []float32, top float32) (total, weighted float64) {
	var t, w [4]float64
	for i, e := range s.exps[:s.vocabulary] {
		if e > 0 {
			t[i&3] += float64(e)
			w[i&3] += float64(e) * float64(z[i]-top)
		}
	}
	return (t[0] + t[1]) + (t[2] + t[3]), (w[0] + w[1]) + (w[2] + w[3])
}

// pick returns the first token at which the running sum of probabilities
// passes target; rounding at the far end falls back to the last possible token.
func (s *sampler) pick(target float64) int {
	sum, last := 0.0, 0
	for i, e := range s.exps[:s.vocabulary] {
		if e == 0 {
			continue
		}
		sum += float64(e)
		if sum > target {
			return i
		}
		last = i
	}
	return last
}

func argmax(z []float32) int {
	best := 0
	for i, v := range z {
		if v > z[best] {
			best = i
		}
	}
	return best
}

// truncate applies min-p, top-k and top-p, in vLLM's order, by setting what
// they remove to -Inf.
func (s *sampler) truncate(logits []float32, options *Sampling) {
	z := logits[:s.vocabulary]
	if options.MinP > 0 {
		// p < MinP * pmax  <=>  z < zmax + log MinP
		floor := z[argmax(z)] + float32(math.Log(options.MinP))
		for i, v := range z {
			if v < floor {
				z[i] = minusInf
			}
		}
	}
	topK := options.TopK > 0 && options.TopK < len(z)
	topP := options.TopP > 0 && options.TopP < 1
	if !topK && !topP {
		return
	}
	s.sortDescending(z)
	if topK {
		floor := z[s.order[options.TopK-1]]
		for i, v := range z {
			if v < floor {
				z[i] = minusInf
			}
		}
	}
	if topP {
		s.truncateTopP(logits, options.TopP)
	}
}

// truncateTopP keeps, from the most probable token on, every token before which
// less than p has been gathered.
func (s *sampler) truncateTopP(logits []float32, p float64) {
	kernel.ExpSub(s.exps, logits, 1, logits[s.order[0]])
	total := 0.0
	for _, i := range s.order {
		total += float64(s.exps[i])
	}
	gathered := 0.0
	for _, i := range s.order {
		if gathered >= p*total {
			logits[i] = minusInf
		}
		gathered += float64(s.exps[i])
	}
}

// sortDescending fills order with all tokens by falling logit, lower ids first
// among equals.
func (s *sampler) sortDescending(z []float32) {
	s.order = s.order[:len(z)]
	for i := range s.order {
		s.order[i] = int32(i)
	}
	slices.SortFunc(s.order, func(a, b int32) int {
		switch {
		case z[a] > z[b]:
			return -1
		case z[a] < z[b]:
			return 1
		}
		return int(a - b)
	})
}

// TokenLogProb is one candidate token.
type TokenLogProb struct {
	Token   int32
	LogProb float32
}

// top appends the k most probable tokens (all for -1) of processed logits to
// into, by falling log-probability.
func (s *sampler) top(into []TokenLogProb, logits []float32, k int, logNorm float64) []TokenLogProb {
	z := logits[:s.vocabulary]
	if k < 0 || k > len(z) {
		k = len(z)
	}
	start := len(into)
	if k > 32 {
		s.sortDescending(z)
		for _, i := range s.order[:k] {
			into = append(into, TokenLogProb{i, float32(float64(z[i]) - logNorm)})
		}
		return into
	}
	for i, v := range z {
		if len(into)-start == k {
			if k == 0 || v <= into[len(into)-1].LogProb {
				continue
			}
			into = into[:len(into)-1]
		}
		into = append(into, TokenLogProb{int32(i), v})
		for j := len(into) - 1; j > start && into[j].LogProb > into[j-1].LogProb; j-- {
			into[j], into[j-1] = into[j-1], into[j]
		}
	}
	for j := start; j < len(into); j++ {
		into[j].LogProb = float32(float64(into[j].LogProb) - logNorm)
	}
	return into
}
