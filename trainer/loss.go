package trainer

import (
	"errors"
	"fmt"
	"math"
)

// TraceInput is what the loss of one trace is made of. All slices but
// Advantages are [T]; nats.
type TraceInput struct {
	LP        []float64 // log-probabilities that are being trained
	Entropy   []float64 // exact token entropies of the same forward pass; nil where the options need none
	Old       []float64 // of Score; nil only for nll
	Reference []float64 // nil when KL is off
	Rollout   []float64 // of the engine that sampled; nil: no correction, no gap
	// Advantages is [1], one value for all tokens, or [T]. Ignored by nll.
	Advantages []float64
	Mask       []bool // nil: all true
	Kept       []bool // what [HighEntropy] chose; nil: all
	Covariance []bool // what [HighCovariance] chose; nil: none
}

// TraceLoss is the part of the update's loss that belongs to one trace, and its
// derivatives. Everything is already divided by the denominators of the whole
// update.
type TraceLoss struct {
	GradLP      []float64 // [T] d(loss)/d(lp[t])
	GradEntropy []float64 // [T] d(loss)/d(entropy[t]); nil without an entropy bonus
	Sums        LossSums
}

// LossSums are the sums behind a [Report]. They add up over traces,
// micro-batches and ranks; added in the same order they give the same bits.
type LossSums struct {
	Policy, KL, Bonus float64 // weighted parts of the loss: total = Policy + KL + Bonus
	Tokens            int     // masked-in tokens
	Behaviour         float64 // sum of old - lp
	Reference         float64 // sum of the KL estimate, without coefficient
	Entropy           float64 // sum of token entropies
	Clamped           int     // tokens whose KL estimate was clamped
	Low, High, Dual   int     // tokens at each bound
	Gap               GapSums
}

// Add takes in other.
func (s *LossSums) Add(other LossSums) {
	s.Policy += other.Policy
	s.KL += other.KL
	s.Bonus += other.Bonus
	s.Tokens += other.Tokens
	s.Behaviour += other.Behaviour
	s.Reference += other.Reference
	s.Entropy += other.Entropy
	s.Clamped += other.Clamped
	s.Low += other.Low
	s.High += other.High
	s.Dual += other.Dual
	s.Gap.Add(other.Gap)
}

// Total is the loss.
func (s LossSums) Total() float64 { return s.Policy + s.KL + s.Bonus }

// Finite says that the loss can be trained on.
func (s LossSums) Finite() bool {
	total := s.Total()
	return !math.IsNaN(total) && !math.IsInf(total, 0)
}

// Report turns the sums of a whole update into means. Step, GradNorm, Seconds
// and PeakBytes are the backend's to fill in.
func (s LossSums) Report() Report {
	r := Report{Loss: s.Total(), PolicyLoss: s.Policy, KLLoss: s.KL, Tokens: s.Tokens, Gap: s.Gap.Gap()}
	if s.Tokens == 0 {
		return r
	}
	n := float64(s.Tokens)
	r.KLBehaviour, r.KLReference, r.Entropy = s.Behaviour/n, s.Reference/n, s.Entropy/n
	r.KLClamped, r.ClipLow = float64(s.Clamped)/n, float64(s.Low)/n
	r.ClipHigh, r.ClipDual = float64(s.High)/n, float64(s.Dual)/n
	return r
}

// LossOfTrace computes the loss of one trace under o and its derivatives with
// respect to every log-probability and entropy, for a backend to feed to its
// backward pass. For each masked-in token, with weight w of [Aggregation]:
//
//	w * (TokenLoss + coef_kl * Estimate - bonus * entropy)
//
// A token that is not Kept adds no TokenLoss. A token chosen by Clip-Cov keeps
// its value and loses its gradient; one chosen by KL-Cov adds coef*|lp - old|.
// Values outside of the mask may be anything, NaN too. NaN or infinity inside
// goes through to the result, where [LossSums.Finite] sees it.
func LossOfTrace(in TraceInput, o StepOptions) (TraceLoss, error) {
	if err := in.check(o); err != nil {
		return TraceLoss{}, err
	}
	tokens := len(in.LP)
	n := tokens
	if in.Mask != nil {
		n = countTrue(in.Mask)
	}
	how := o.Aggregation
	if o.Loss == GSPO {
		how = SeqMeanTokenMean
	}
	weight, err := how.TokenWeight(o.Denominators, n)
	if err != nil {
		return TraceLoss{}, err
	}
	out := TraceLoss{GradLP: make([]float64, tokens)}
	if o.EntropyBonus != 0 {
		out.GradEntropy = make([]float64, tokens)
	}
	var correction []float64
	if in.Rollout != nil && o.Loss != NLL {
		if correction, out.Sums.Gap, err = o.Correction.Weights(in.Old, in.Rollout, in.Mask); err != nil {
			return TraceLoss{}, err
		}
	}
	meanRatio := in.meanLogRatio(o, n)
	for t := range tokens {
		if !masked(in.Mask, t) {
			continue
		}
		if err := out.token(in, o, t, tokenScale{weight, factorAt(correction, t), meanRatio}); err != nil {
			return TraceLoss{}, fmt.Errorf("token %d: %w", t, err)
		}
	}
	return out, nil
}

// tokenScale is what all tokens of a trace share, and the token's correction.
type tokenScale struct{ weight, correction, meanLogRatio float64 }

// token adds token t to the loss.
func (l *TraceLoss) token(in TraceInput, o StepOptions, t int, scale tokenScale) error {
	s := &l.Sums
	s.Tokens++
	logRatio := scale.meanLogRatio
	if o.Loss != NLL {
		s.Behaviour += in.Old[t] - in.LP[t]
		if o.Loss != GSPO {
			logRatio = in.LP[t] - in.Old[t]
		}
	}
	policy, err := TokenLoss(o, in.LP[t], logRatio, advantageAt(in.Advantages, t)*scale.correction)
	if err != nil {
		return err
	}
	s.count(policy.Clipped)
	if in.Kept != nil && !in.Kept[t] {
		policy = Term{}
	}
	if in.Covariance != nil && in.Covariance[t] {
		policy = covarianceTerm(policy, o.Covariance, in.LP[t]-in.Old[t])
	}
	s.Policy += scale.weight * policy.Value
	l.GradLP[t] = scale.weight * policy.Grad
	if o.KL.Kind != KLOff && in.Reference != nil {
		kl, clamped, err := o.KL.Estimate(in.LP[t], in.Reference[t])
		if err != nil {
			return err
		}
		s.Reference += kl.Value
		s.KL += scale.weight * o.KL.Coef * kl.Value
		l.GradLP[t] += scale.weight * o.KL.Coef * kl.Grad
		if clamped {
			s.Clamped++
		}
	}
	if in.Entropy != nil {
		s.Entropy += in.Entropy[t]
		if o.EntropyBonus != 0 {
			s.Bonus -= scale.weight * o.EntropyBonus * in.Entropy[t]
			l.GradEntropy[t] = -scale.weight * o.EntropyBonus
		}
	}
	return nil
}

func (s *LossSums) count(side ClipSide) {
	switch side {
	case ClipLow:
		s.Low++
	case ClipHigh:
		s.High++
	case ClipDual:
		s.Dual++
	}
}

// covarianceTerm is the policy term of a token that was chosen.
func covarianceTerm(policy Term, c Covariance, logRatio float64) Term {
	switch c.Kind {
	case ClipCov:
		policy.Grad = 0
	case KLCov:
		policy.Value += c.Coef * math.Abs(logRatio)
		if logRatio != 0 { // |x| has slope 0 at 0, as in PyTorch
			policy.Grad += math.Copysign(c.Coef, logRatio)
		}
	}
	return policy
}

// meanLogRatio is the exponent of gspo, 0 for all others.
func (in TraceInput) meanLogRatio(o StepOptions, n int) float64 {
	if o.Loss != GSPO || n == 0 {
		return 0
	}
	sum := 0.0
	for t := range in.LP {
		if masked(in.Mask, t) {
			sum += in.LP[t] - in.Old[t]
		}
	}
	return sum / float64(n)
}

func factorAt(weights []float64, t int) float64 {
	if weights == nil {
		return 1
	}
	return weights[t]
}

func advantageAt(advantages []float64, t int) float64 {
	switch {
	case len(advantages) == 1:
		return advantages[0]
	case t < len(advantages):
		return advantages[t]
	}
	return 1 // nll looks at none
}

// check reports every slice that does not fit, and what o needs but is not
// there.
func (in TraceInput) check(o StepOptions) error {
	n := len(in.LP)
	var problems []error
	fit := func(name string, length int, absent, needed bool) {
		switch {
		case absent && needed:
			problems = append(problems, fmt.Errorf("%s is needed by loss %s and its options", name, o.Loss))
		case !absent && length != n:
			problems = append(problems, fmt.Errorf("%s has %d tokens, want %d", name, length, n))
		}
	}
	fit("entropy", len(in.Entropy), in.Entropy == nil, o.EntropyBonus != 0)
	fit("old", len(in.Old), in.Old == nil, o.Loss != NLL || in.Covariance != nil)
	fit("reference", len(in.Reference), in.Reference == nil, o.KL.Kind != KLOff)
	fit("rollout", len(in.Rollout), in.Rollout == nil, o.Correction.Level != CorrectionOff && o.Loss != NLL)
	fit("mask", len(in.Mask), in.Mask == nil, false)
	fit("kept", len(in.Kept), in.Kept == nil, false)
	fit("covariance", len(in.Covariance), in.Covariance == nil, false)
	if len(in.Advantages) != n && len(in.Advantages) != 1 && o.Loss != NLL {
		problems = append(problems, fmt.Errorf("advantages has %d values, want 1 or %d", len(in.Advantages), n))
	}
	return errors.Join(problems...)
}
