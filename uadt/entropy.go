package uadt

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Estimator names how H is estimated: "exact", "topk<k>" or "surprisal".
// Estimators are never mixed in one run.
type Estimator string

// The estimators without a parameter; TopK makes the third kind.
const (
	Exact     Estimator = "exact"     // full vocabulary, from the trainer's score
	Surprisal Estimator = "surprisal" // mean of -log p of the sampled tokens
)

// TopK names the estimator of the k largest log-probabilities and a tail bucket.
func TopK(k int) Estimator { return Estimator("topk" + strconv.Itoa(k)) }

// K returns k of a topk estimator, and 0 of any other.
func (e Estimator) K() int {
	digits, ok := strings.CutPrefix(string(e), "topk")
	if !ok {
		return 0
	}
	k, err := strconv.Atoi(digits)
	if err != nil || k < 1 {
		return 0
	}
	return k
}

// ParseEstimator checks the name of an estimator.
func ParseEstimator(name string) (Estimator, error) {
	e := Estimator(name)
	if e == Exact || e == Surprisal || (e.K() > 0 && e == TopK(e.K())) {
		return e, nil
	}
	return "", fmt.Errorf("entropy estimator %q: want exact, surprisal, or topk and k, such as topk20", name)
}

// TokenEntropy returns -sum_v p(v) log p(v) of softmax(logits/temperature), in
// nats. A logit of -Inf is a banned id and has probability 0. It fails on NaN,
// on +Inf, when every id is banned, and on a temperature that is not above 0.
func TokenEntropy(logits []float64, temperature float64) (float64, error) {
	if !finite(temperature) || temperature <= 0 {
		return 0, fmt.Errorf("temperature %v: want a number above 0", temperature)
	}
	top := math.Inf(-1)
	for v, z := range logits {
		if math.IsNaN(z) || math.IsInf(z, 1) {
			return 0, fmt.Errorf("logit %d is %v", v, z)
		}
		top = math.Max(top, z)
	}
	if math.IsInf(top, -1) {
		return 0, fmt.Errorf("%d logits, none above -Inf", len(logits))
	}
	// H = log Z - sum(e^d * d)/Z with d = (z - max)/temperature <= 0: no exponent
	// overflows, Z >= 1 so that its logarithm is safe, and no log(softmax) is
	// taken, which would be -Inf for probabilities below the smallest float.
	var sum, weighted float64
	for _, z := range logits {
		d := (z - top) / temperature
		e := math.Exp(d)
		sum += e
		if e > 0 { // 0 * -Inf would be NaN; its limit is 0
			weighted += e * d
		}
	}
	return math.Log(sum) - weighted/sum, nil
}

// TopKEntropy returns the entropy, in nats, of the k largest of logprobs and
// one bucket of everything else: -sum p log p - q log q, with
// q = max(0, 1 - sum p) and 0*log 0 = 0. A server may return more than k (the
// sampled token beside the top ones): only the k largest are used. Fewer than k
// is an error, and so are NaN and values above 0 beyond rounding.
//
// It never exceeds the exact entropy, because merging outcomes loses
// information.
func TopKEntropy(logprobs []float64, k int) (float64, error) {
	if k < 1 {
		return 0, fmt.Errorf("k is %d, want at least 1", k)
	}
	if len(logprobs) < k {
		return 0, fmt.Errorf("%d log-probabilities, want at least k = %d", len(logprobs), k)
	}
	for i, lp := range logprobs {
		if math.IsNaN(lp) || lp > roundingSlack {
			return 0, fmt.Errorf("log-probability %d is %v, want at most 0", i, lp)
		}
	}
	sorted := slices.Clone(logprobs)
	slices.SortFunc(sorted, func(a, b float64) int { return cmp.Compare(b, a) })
	var mass, h float64
	for _, lp := range sorted[:k] {
		p := math.Exp(lp)
		if p > 0 {
			mass += p
			h -= p * lp
		}
	}
	if q := math.Max(0, 1-mass); q > 0 {
		h -= q * math.Log(q)
	}
	return math.Max(h, 0), nil // a log-probability of +1e-7 may round h below 0
}

// roundingSlack is how far a float32 log-probability may lie above 0, or an
// entropy below 0, before it counts as wrong rather than rounded.
const roundingSlack = 1e-4

// Surprisals returns -log p of each sampled token, the per-token signal of the
// surprisal estimator. Its mean estimates H without bias only if the tokens
// were sampled from the very distribution that logprobs are of; it is noisy and
// depends on the action itself.
func Surprisals(logprobs []float32) []float32 {
	out := make([]float32, len(logprobs))
	for i, lp := range logprobs {
		out[i] = -lp
	}
	return out
}

// MeanEntropy returns H, the mean of values over the tokens that span marks
// (nil: all), summed in float64 in order. ok is false when span marks none. It
// fails on lengths that differ and on values that are not finite or negative
// beyond rounding.
func MeanEntropy(values []float32, span []bool) (h float64, ok bool, err error) {
	if span != nil && len(span) != len(values) {
		return 0, false, fmt.Errorf("span of %d tokens, entropies of %d", len(span), len(values))
	}
	var sum float64
	n := 0
	for t, v := range values {
		if x := float64(v); !finite(x) || x < -roundingSlack {
			return 0, false, fmt.Errorf("entropy of token %d is %v, want a finite number of at least 0", t, v)
		}
		if span == nil || span[t] {
			sum += float64(v)
			n++
		}
	}
	if n == 0 {
		return 0, false, nil
	}
	return sum / float64(n), true, nil
}
