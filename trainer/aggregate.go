package trainer

import "fmt"

// Denominators are the sums over the whole optimizer update, all ranks and
// micro-batches together, that aggregation divides by.
type Denominators struct {
	Tokens    int // masked-in response tokens of all trained traces
	Sequences int // trained traces with at least one such token
	MaxTokens int // rollout.max_tokens: the length that seq_mean_token_sum_norm divides by
}

// CountDenominators sums over the traces of groups for which counts says true
// (nil: all; grpo.denominator: informative leaves groups out). Empty rows are
// not counted.
func CountDenominators(groups []Group, maxTokens int, counts func(group int) bool) Denominators {
	d := Denominators{MaxTokens: maxTokens}
	for q, g := range groups {
		if counts != nil && !counts(q) {
			continue
		}
		for _, s := range g.Traces {
			if n := s.Trained(); n > 0 {
				d.Tokens += n
				d.Sequences++
			}
		}
	}
	return d
}

// Trained counts the masked-in tokens of s.
func (s Sequence) Trained() int {
	if s.Mask == nil {
		return len(s.Tokens)
	}
	return countTrue(s.Mask)
}

// TokenWeight returns the factor of every masked-in token of a trace with n of
// them, so that aggregation is one weighted sum and micro-batches and ranks add
// up to the same loss and gradient in any split:
//
//	token_mean               1 / tokens
//	seq_mean_token_sum       1 / sequences
//	seq_mean_token_mean      1 / (n * sequences)
//	seq_mean_token_sum_norm  1 / (max tokens * sequences)
//
// It fails on an unknown name and on a denominator that is not above 0; with
// n = 0 there is no token to weigh and the answer is 0.
func (a Aggregation) TokenWeight(d Denominators, n int) (float64, error) {
	if n == 0 {
		return 0, nil
	}
	divisor := 0
	switch a {
	case TokenMean:
		divisor = d.Tokens
	case SeqMeanTokenSum:
		divisor = d.Sequences
	case SeqMeanTokenMean:
		divisor = n * d.Sequences
	case SeqMeanTokenSumNorm:
		divisor = d.MaxTokens * d.Sequences
	default:
		return 0, fmt.Errorf("aggregation %q: want %s, %s, %s or %s", string(a), TokenMean, SeqMeanTokenSum, SeqMeanTokenMean, SeqMeanTokenSumNorm)
	}
	if divisor <= 0 {
		return 0, fmt.Errorf("aggregation %s divides by %d (tokens %d, sequences %d, max tokens %d)", a, divisor, d.Tokens, d.Sequences, d.MaxTokens)
	}
	return 1 / float64(divisor), nil
}

func countTrue(mask []bool) int {
	n := 0
	for _, m := range mask {
		if m {
			n++
		}
	}
	return n
}
