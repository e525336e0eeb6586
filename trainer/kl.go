package trainer

import (
	"fmt"
	"math"
)

// Clamps of the KL estimators where KL.Clamp is set, as verl has them.
const (
	maxKLDistance = 20
	maxKLEstimate = 10
)

// Estimate returns the estimator of KL(policy || reference) of one token and
// its derivative with respect to lp. With d = ref - lp:
//
//	k1 = -d          derivative 1; its expected gradient is 0, so it is refused in the loss
//	k2 = d^2/2       derivative -d
//	k3 = exp(d)-d-1  derivative 1-exp(d)
//
// With Clamp, d is held to +-20 and then the estimate to +-10; clamped says that
// one of them acted, and the derivative is then 0.
func (k KL) Estimate(lp, ref float64) (t Term, clamped bool, err error) {
	d := ref - lp
	slope := 1.0
	if k.Clamp && math.Abs(d) > maxKLDistance {
		d, slope, clamped = math.Copysign(maxKLDistance, d), 0, true
	}
	switch k.Kind {
	case K1:
		t = Term{Value: -d, Grad: slope}
	case K2:
		t = Term{Value: d * d / 2, Grad: -d * slope}
	case K3:
		// expm1 keeps the digits that exp(d) - 1 loses where d is small.
		t = Term{Value: math.Expm1(d) - d, Grad: -math.Expm1(d) * slope}
	default:
		return Term{}, false, fmt.Errorf("KL estimator %q: want %s, %s or %s", string(k.Kind), K1, K2, K3)
	}
	if k.Clamp && math.Abs(t.Value) > maxKLEstimate {
		t, clamped = Term{Value: math.Copysign(maxKLEstimate, t.Value)}, true
	}
	return t, clamped, nil
}
