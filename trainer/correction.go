package trainer

import (
	"fmt"
	"math"
)

// The values of Correction.Level and Correction.Mode.
const (
	CorrectionOff      = ""
	CorrectionToken    = "token"
	CorrectionSequence = "sequence"
	CorrectTruncate    = "truncate" // w = min(w, Upper)
	CorrectMask        = "mask"     // w = 0 outside [Lower, Upper]
)

// defaultUpper is Correction.Upper where it is 0.
const defaultUpper = 2

// GapSums are the sums behind a [Gap]; they add up over traces.
type GapSums struct {
	Tokens     int
	W, WMax    float64 // before truncation
	Outside    int     // tokens whose w lies above Upper, or outside of the bounds of mask
	Difference float64 // sum of rollout - old
}

// Add takes in the sums of another trace or micro-batch.
func (g *GapSums) Add(other GapSums) {
	g.Tokens += other.Tokens
	g.W += other.W
	g.WMax = math.Max(g.WMax, other.WMax)
	g.Outside += other.Outside
	g.Difference += other.Difference
}

// Gap returns the means per token; zero when there are no tokens.
func (g GapSums) Gap() Gap {
	if g.Tokens == 0 {
		return Gap{}
	}
	n := float64(g.Tokens)
	return Gap{WMean: g.W / n, WMax: g.WMax, Truncated: float64(g.Outside) / n, KL: g.Difference / n}
}

// Weights returns, for each of the T tokens of a trace, the factor of its
// advantage, and the statistics of the gap, which are measured whether
// correction is on or off (then all factors are 1). w = exp(old - rollout) of
// the token, or exp of the sum over the trace's masked-in tokens at level
// sequence, the exponent held to +-20. Tokens outside of mask (nil: none) have
// factor 1 and are in no sum. old and rollout are [T].
func (c Correction) Weights(old, rollout []float64, mask []bool) ([]float64, GapSums, error) {
	if len(old) != len(rollout) || (mask != nil && len(mask) != len(old)) {
		return nil, GapSums{}, fmt.Errorf("correction: old of %d tokens, rollout of %d, mask of %d", len(old), len(rollout), len(mask))
	}
	sum := 0.0
	for t := range old {
		if masked(mask, t) {
			sum += old[t] - rollout[t]
		}
	}
	upper := c.upper()
	weights := make([]float64, len(old))
	var sums GapSums
	for t := range old {
		weights[t] = 1
		if !masked(mask, t) {
			continue
		}
		exponent := old[t] - rollout[t]
		sums.Difference -= exponent
		if c.Level == CorrectionSequence {
			exponent = sum
		}
		w := math.Exp(math.Max(-maxLogRatio, math.Min(maxLogRatio, exponent)))
		outside := w > upper || (c.Mode == CorrectMask && w < c.Lower)
		sums.Tokens++
		sums.W += w
		sums.WMax = math.Max(sums.WMax, w)
		if outside {
			sums.Outside++
		}
		switch {
		case c.Level == CorrectionOff:
		case c.Mode == CorrectMask && outside:
			weights[t] = 0
		default:
			weights[t] = math.Min(w, upper)
		}
	}
	return weights, sums, nil
}

// upper is Upper or its default.
func (c Correction) upper() float64 {
	if c.Upper == 0 {
		return defaultUpper
	}
	return c.Upper
}

// masked says that token t takes part.
func masked(mask []bool, t int) bool { return mask == nil || mask[t] }
