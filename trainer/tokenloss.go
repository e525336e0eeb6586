package trainer

import (
	"fmt"
	"math"
)

// Bounds of the exponents. exp(20) is 4.9e8: large enough never to touch a
// healthy ratio, small enough that its square is still a float32.
const (
	maxLogRatio     = 20 // of a token, both ways (as verl)
	maxLogRatioGSPO = 10 // of a sequence, upwards only (as verl)
)

// ClipSide says which bound of a token loss acted.
type ClipSide uint8

// The bounds.
const (
	ClipNone ClipSide = iota
	ClipLow           // the ratio lay below 1-lo where that bound decides the loss
	ClipHigh          // the ratio lay above 1+hi where that bound decides the loss
	ClipDual          // A < 0 and the loss was held at -A*c
)

// Term is a value and its derivative with respect to the log-probability lp
// that is being trained.
type Term struct {
	Value, Grad float64
	Clipped     ClipSide
}

// TokenLoss returns the loss of one token. logRatio is lp - old of the token,
// for gspo the mean of that over the masked-in tokens of the sequence; a is the
// advantage, after shaping and rollout correction. With
// ratio = exp(clamp(logRatio, -20, 20)), lo and hi of [StepOptions]:
//
//	ppo    max(-A*ratio, -A*clip(ratio, 1-lo, 1+hi)), and for A < 0 also
//	       min(., -A*c) when DualClip c is set (verl 3.0; TRL has none)
//	gspo   the same without c on ratio = exp(min(mean log-ratio, 10)), every
//	       token carrying the gradient of its own lp only (arXiv 2507.18071,
//	       token form with stop-gradient); aggregation is seq_mean_token_mean
//	cispo  -sg(clip(ratio, 1-lo, 1+hi)) * A * lp (arXiv 2506.13585)
//	nll    -lp, whatever A is
//
// sg is stop-gradient. Where a clamp or clip holds the ratio the derivative is
// 0; exactly on its bound it still passes, as in PyTorch. With one update per
// rollout batch and staleness 0, old equals lp, the ratio is 1 and no clip
// acts.
func TokenLoss(o StepOptions, lp, logRatio, a float64) (Term, error) {
	switch o.Loss {
	case NLL:
		return Term{Value: -lp, Grad: -1}, nil
	case PPO:
		ratio, slope := boundedRatio(logRatio, -maxLogRatio, maxLogRatio)
		return dualClip(surrogate(o, ratio, slope, a), o.DualClip, a), nil
	case GSPO:
		ratio, slope := boundedRatio(logRatio, math.Inf(-1), maxLogRatioGSPO)
		return surrogate(o, ratio, slope, a), nil
	case CISPO:
		ratio, _ := boundedRatio(logRatio, -maxLogRatio, maxLogRatio)
		weight, side := ratio, ClipNone
		if ratio < 1-o.ClipLow {
			weight, side = 1-o.ClipLow, ClipLow
		} else if ratio > 1+o.ClipHigh {
			weight, side = 1+o.ClipHigh, ClipHigh
		}
		return Term{Value: -weight * a * lp, Grad: -weight * a, Clipped: side}, nil
	}
	return Term{}, fmt.Errorf("loss %q: want %s, %s, %s or %s", string(o.Loss), PPO, GSPO, CISPO, NLL)
}

// boundedRatio returns exp(clamp(logRatio)) and its derivative.
func boundedRatio(logRatio, low, high float64) (ratio, slope float64) {
	ratio = math.Exp(math.Max(low, math.Min(high, logRatio)))
	if logRatio < low || logRatio > high {
		return ratio, 0
	}
	return ratio, ratio
}

// surrogate is max(-A*ratio, -A*clip(ratio)): the clipped branch wins only where
// it is strictly larger, which is where moving on would still be rewarded.
func surrogate(o StepOptions, ratio, slope, a float64) Term {
	low, high := 1-o.ClipLow, 1+o.ClipHigh
	switch {
	case a < 0 && ratio < low:
		return Term{Value: -a * low, Clipped: ClipLow}
	case a > 0 && ratio > high:
		return Term{Value: -a * high, Clipped: ClipHigh}
	}
	return Term{Value: -a * ratio, Grad: -a * slope}
}

// dualClip holds the loss of a token with A < 0 at -A*c.
func dualClip(t Term, c, a float64) Term {
	if c > 0 && a < 0 && t.Value > -a*c {
		return Term{Value: -a * c, Clipped: ClipDual}
	}
	return t
}
