package trainer

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Validate reports everything in o that no backend could apply, joined: values
// out of range, and combinations without a meaning (k1 in the loss, whose
// expected gradient is 0).
func (o StepOptions) Validate() error {
	var problems []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	const most = math.MaxFloat64
	require(slices.Contains([]Loss{PPO, GSPO, CISPO, NLL}, o.Loss), "loss %q: want ppo, gspo, cispo or nll", string(o.Loss))
	require(inRange(o.ClipLow, 0, 1), "clip low %v: want a number in [0, 1]", o.ClipLow)
	require(inRange(o.ClipHigh, 0, most), "clip high %v: want at least 0", o.ClipHigh)
	require(o.DualClip == 0 || inRange(o.DualClip, math.Nextafter(1, 2), most), "dual clip %v: want 0 (none) or more than 1", o.DualClip)
	require(slices.Contains([]KLKind{KLOff, K2, K3}, o.KL.Kind), "KL %q in the loss: want k2, k3 or none (k1 has no expected gradient)", string(o.KL.Kind))
	require(inRange(o.KL.Coef, 0, most), "KL coefficient %v: want at least 0", o.KL.Coef)
	_, err := o.Aggregation.TokenWeight(Denominators{Tokens: 1, Sequences: 1, MaxTokens: 1}, 1)
	require(err == nil, "aggregation %q: want token_mean, seq_mean_token_sum, seq_mean_token_mean or seq_mean_token_sum_norm", string(o.Aggregation))
	require(o.Denominators.Tokens >= 0 && o.Denominators.Sequences >= 0 && o.Denominators.MaxTokens >= 0, "denominators %+v: want none below 0", o.Denominators)
	c := o.Correction
	require(slices.Contains([]string{CorrectionOff, CorrectionToken, CorrectionSequence}, c.Level), "correction level %q: want token, sequence or none", c.Level)
	require(c.Level == CorrectionOff || c.Mode == CorrectTruncate || c.Mode == CorrectMask, "correction mode %q: want truncate or mask", c.Mode)
	upper := c.upper()
	require(inRange(c.Lower, 0, upper) && inRange(upper, 0, most), "correction bounds [%v, %v]: want 0 <= lower <= upper", c.Lower, upper)
	v := o.Covariance
	require(slices.Contains([]string{CovarianceOff, ClipCov, KLCov}, v.Kind), "covariance %q: want clip, kl or none", v.Kind)
	require(v.Kind == CovarianceOff || checkShare(v.Share) == nil, "covariance share %v: want a number in (0, 1]", v.Share)
	require(inRange(v.Coef, 0, most), "covariance coefficient %v: want at least 0", v.Coef)
	require(inRange(o.EntropyBonus, 0, most), "entropy bonus %v: want at least 0", o.EntropyBonus)
	require(inRange(o.EntropyQuantile, 0, 1), "entropy quantile %v: want a number in [0, 1]", o.EntropyQuantile)
	require(inRange(o.LearningRate, 0, most), "learning rate %v: want at least 0", o.LearningRate)
	require(inRange(o.GradClip, 0, most), "gradient clip %v: want at least 0", o.GradClip)
	require(inRange(o.Temperature, math.SmallestNonzeroFloat64, most), "temperature %v: want above 0", o.Temperature)
	return errors.Join(problems...)
}
