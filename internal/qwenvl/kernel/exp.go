package kernel

import "math"

// Constants of the float32 exponential: Cephes' expf (S. Moshier, 1992):
// x = n ln 2 + r, ln 2 in two parts so that r is exact, and a polynomial in r.
// The largest error over the range is below 2 units in the last place.
const (
	expLow  = -87.0 // below, the result is 0: exp(-87) is 1.6e-38, the edge of the normal numbers
	expHigh = 88.0
	log2e   = 1.44269504088896341
	ln2Hi   = 0.693359375
	ln2Lo   = -2.12194440e-4
	expC0   = 1.9875691500e-4
	expC1   = 1.3981999507e-3
	expC2   = 8.3334519073e-3
	expC3   = 4.1665795894e-2
	expC4   = 1.6666665459e-1
	expC5   = 5.0000001201e-1
)

// ExpSub computes dst[i] = exp(x[i]*scale - shift) for len(dst) values, a
// multiple of Width. Values below -87 (and -Inf) give 0. dst may be x.
func ExpSub(dst, x []float32, scale, shift float32) {
	if len(dst) == 0 {
		return
	}
	_ = x[len(dst)-1]
	_ = dst[:len(dst)&^(Width-1)]
	expSub(dst, x, scale, shift)
}

// SiLUMul computes gate[i] = gate[i] * sigmoid(gate[i]) * up[i] for len(gate)
// values, a multiple of Width.
func SiLUMul(gate, up []float32) {
	if len(gate) == 0 {
		return
	}
	_ = up[len(gate)-1]
	siluMul(gate, up)
}

func expSubGo(dst, x []float32, scale, shift float32) {
	for i := range dst {
		dst[i] = exp32(float32(x[i]*scale) - shift)
	}
}

func siluMulGo(gate, up []float32) {
	for i, g := range gate {
		gate[i] = float32(g/(1+exp32(-g))) * up[i]
	}
}

func exp32(x float32) float32 {
	if !(x >= expLow) {
		return 0
	}
	if x > expHigh {
		x = expHigh
	}
	n := float32(math.RoundToEven(float64(float32(x * log2e))))
	r := x - float32(n*ln2Hi)
	r -= float32(n * ln2Lo)
	p := float32(expC0)
	for _, c := range [...]float32{expC1, expC2, expC3, expC4, expC5} {
		p = float32(p*r) + c
	}
	p = float32(p*float32(r*r)) + r
	p++
	return math.Float32frombits(math.Float32bits(p) + uint32(int32(n))<<23)
}
