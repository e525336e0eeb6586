package matmul

import "math"

// fma is x*y+z. The product of two float32 is exact in float64, so only the
// sum is rounded, to float64 and then to float32: the result differs from a
// float32 fused multiply-add only where the first rounding makes a tie.
func fma(x, y, z float32) float32 {
	return float32(math.FMA(float64(x), float64(y), float64(z)))
}
