package uadt

import (
	"fmt"
	"math"
)

// Advantages returns the advantages of one group from its scored rewards, in
// order:
//
//	grpo     (r - mean) / (std + eps)     std with n-1
//	dr_grpo  r - mean
//	rloo     n/(n-1) * (r - mean)         = r - mean of the others
//
// It returns zeros when fewer than two rewards are given, and does not look at
// the size of std: whether a group is informative is decided before. An unknown
// baseline or a reward that is not finite is an error.
func Advantages(baseline Baseline, eps float64, rewards []float64) ([]float64, error) {
	for i, r := range rewards {
		if !finite(r) {
			return nil, fmt.Errorf("reward %d is %v, want a finite number", i, r)
		}
	}
	out := make([]float64, len(rewards))
	if len(rewards) < 2 {
		return out, nil
	}
	mean, std := sampleMoments(rewards)
	if !finite(std) { // it would divide every advantage down to 0
		return nil, fmt.Errorf("rewards too large: mean %v, std %v", mean, std)
	}
	scale := 1.0
	switch baseline {
	case GRPO:
		scale = 1 / (std + eps)
		if !finite(scale) {
			return nil, fmt.Errorf("baseline grpo: std %g + eps %g is not a divisor", std, eps)
		}
	case DrGRPO:
	case RLOO:
		n := float64(len(rewards))
		scale = n / (n - 1)
	default:
		return nil, fmt.Errorf("baseline %q: want %s, %s or %s", string(baseline), GRPO, DrGRPO, RLOO)
	}
	for i, r := range rewards {
		out[i] = (r - mean) * scale
	}
	return out, nil
}

// sampleMoments returns the mean and the standard deviation with n-1, summed in
// order; 0 and 0 for no values, std 0 for one. Two passes: subtracting the mean
// before squaring keeps rewards that sit on a large offset exact.
func sampleMoments(x []float64) (mean, std float64) {
	if len(x) == 0 {
		return 0, 0
	}
	mean, square := moments(x)
	if len(x) < 2 {
		return mean, 0
	}
	return mean, math.Sqrt(square / float64(len(x)-1))
}

// populationMoments is sampleMoments with n.
func populationMoments(x []float64) (mean, std float64) {
	if len(x) == 0 {
		return 0, 0
	}
	mean, square := moments(x)
	return mean, math.Sqrt(square / float64(len(x)))
}

// moments returns the mean of x and the sum of squared distances from it.
func moments(x []float64) (mean, square float64) {
	for _, v := range x {
		mean += v
	}
	mean /= float64(len(x))
	for _, v := range x {
		square += (v - mean) * (v - mean)
	}
	return mean, square
}
