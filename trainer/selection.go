package trainer

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// The values of Covariance.Kind.
const (
	CovarianceOff = ""
	ClipCov       = "clip"
	KLCov         = "kl"
)

// HighEntropy chooses the share of masked-in tokens of the whole update with
// the highest entropy, for the entropy-quantile loss (arXiv 2506.01939):
// ceil(share*n) of n tokens, equal entropies in batch order. share 0 or 1
// chooses nothing to leave out and returns nil. The denominators of the loss
// stay those of all tokens. entropy is [Q][G][T]; so is the answer.
func HighEntropy(groups []Group, entropy [][][]float32, share float64) ([][][]bool, error) {
	if share == 0 || share == 1 {
		return nil, nil
	}
	if err := checkShare(share); err != nil {
		return nil, fmt.Errorf("entropy quantile: %w", err)
	}
	tokens, err := flatten(groups, "entropy", entropy)
	if err != nil {
		return nil, err
	}
	// The product is rounded to a billionth first: 0.2*15 is 3.0000000000000004.
	count := math.Ceil(math.Round(share*float64(len(tokens))*1e9) / 1e9)
	return choose(groups, tokens, int(count)), nil
}

// HighCovariance chooses the share of masked-in tokens of the whole update with
// the largest covariance term (old - mean old) * (A - mean A), for Clip-Cov and
// KL-Cov (arXiv 2505.22617): max(1, floor(share*n)) of n tokens, equal ones in
// batch order. It looks at old rather than at the log-probabilities being
// trained, so that it does not depend on micro-batches; with one update per
// rollout batch the two are the same. Clip-Cov of the paper draws at random
// among tokens within a band of covariances; this takes the largest ones, so
// that a run can be repeated. old is [Q][G][T], advantages [Q][G][1] or [Q][G][T].
func HighCovariance(groups []Group, old, advantages [][][]float32, share float64) ([][][]bool, error) {
	if err := checkShare(share); err != nil {
		return nil, fmt.Errorf("covariance: %w", err)
	}
	tokens, err := flatten(groups, "old", old)
	if err != nil {
		return nil, err
	}
	if len(tokens) == 0 {
		return choose(groups, nil, 0), nil
	}
	if len(advantages) != len(groups) {
		return nil, fmt.Errorf("advantages of %d groups, batch of %d", len(advantages), len(groups))
	}
	a := make([]float64, len(tokens))
	var meanOld, meanA float64
	for i, at := range tokens {
		if len(advantages[at.group]) != len(groups[at.group].Traces) {
			return nil, fmt.Errorf("group %s: advantages of %d traces, want %d", groups[at.group].ID, len(advantages[at.group]), len(groups[at.group].Traces))
		}
		row := advantages[at.group][at.trace]
		switch len(row) {
		case 1:
			a[i] = float64(row[0])
		case len(groups[at.group].Traces[at.trace].Tokens):
			a[i] = float64(row[at.token])
		default:
			return nil, fmt.Errorf("group %s trace %d: %d advantages", groups[at.group].ID, at.trace, len(row))
		}
		meanOld += at.value
		meanA += a[i]
	}
	n := float64(len(tokens))
	meanOld, meanA = meanOld/n, meanA/n
	for i := range tokens {
		tokens[i].value = (tokens[i].value - meanOld) * (a[i] - meanA)
	}
	return choose(groups, tokens, max(1, int(math.Round(share*n*1e9)/1e9))), nil
}

// place is one masked-in token of a batch and the value it is chosen by.
type place struct {
	group, trace, token int
	value               float64
}

// flatten lists the masked-in tokens of groups in batch order.
func flatten(groups []Group, name string, values [][][]float32) ([]place, error) {
	if len(values) != len(groups) {
		return nil, fmt.Errorf("%s of %d groups, batch of %d", name, len(values), len(groups))
	}
	var out []place
	for q, g := range groups {
		if len(values[q]) != len(g.Traces) {
			return nil, fmt.Errorf("group %s: %s of %d traces, want %d", g.ID, name, len(values[q]), len(g.Traces))
		}
		for i, s := range g.Traces {
			if len(values[q][i]) != len(s.Tokens) {
				return nil, fmt.Errorf("group %s trace %d: %s of %d tokens, want %d", g.ID, i, name, len(values[q][i]), len(s.Tokens))
			}
			for t, v := range values[q][i] {
				if !masked(s.Mask, t) {
					continue
				}
				if x := float64(v); math.IsNaN(x) || math.IsInf(x, 0) {
					return nil, fmt.Errorf("group %s trace %d: %s of token %d is %v", g.ID, i, name, t, v)
				}
				out = append(out, place{q, i, t, float64(v)})
			}
		}
	}
	return out, nil
}

// choose marks the count places of largest value.
func choose(groups []Group, places []place, count int) [][][]bool {
	out := make([][][]bool, len(groups))
	for q, g := range groups {
		out[q] = make([][]bool, len(g.Traces))
		for i, s := range g.Traces {
			out[q][i] = make([]bool, len(s.Tokens))
		}
	}
	slices.SortStableFunc(places, func(a, b place) int { return cmp.Compare(b.value, a.value) })
	for _, at := range places[:min(count, len(places))] {
		out[at.group][at.trace][at.token] = true
	}
	return out
}

func checkShare(share float64) error {
	if !(share > 0 && share <= 1) { // NaN too
		return fmt.Errorf("share %v: want a number in (0, 1]", share)
	}
	return nil
}
