package vllm

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// topKEntropy is the topk estimator of a token's entropy in nats: the k largest
// of logprobs and one bucket of the rest, -sum p log p - q log q with
// q = max(0, 1 - sum p) and 0 log 0 = 0. It sorts logprobs in place.
func topKEntropy(logprobs []float64, k int) (float64, error) {
	if len(logprobs) < k {
		return 0, fmt.Errorf("%d top log-probabilities, want at least %d", len(logprobs), k)
	}
	slices.SortFunc(logprobs, func(a, b float64) int { return cmp.Compare(b, a) })
	mass, h := 0.0, 0.0
	for _, lp := range logprobs[:k] {
		// vLLM writes -9999 for a probability of zero; Exp takes it to 0.
		p := math.Exp(lp)
		mass += p
		h -= p * lp
	}
	if q := 1 - mass; q > 0 {
		h -= q * math.Log(q)
	}
	return max(0, h), nil // rounding may leave a certain token a little below 0
}
