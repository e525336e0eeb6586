package coordinator

import "gonum.org/v1/gonum/stat"

// mean is the arithmetic mean of x, 0 when x is empty: ask len first.
func mean(x []float64) float64 {
	if len(x) == 0 {
		return 0
	}
	return stat.Mean(x, nil)
}

// spread is the standard deviation of x with n-1, 0 below two elements.
func spread(x []float64) float64 {
	if len(x) < 2 {
		return 0
	}
	return stat.StdDev(x, nil)
}
