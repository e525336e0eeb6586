package qwenvl

import "math"

// rmsNorm writes x / sqrt(mean(x^2) + eps) * weight to dst. Four running sums
// keep the additions independent; their order is fixed by the width alone.
func rmsNorm(dst, x, weight []float32, eps float32) {
	x = x[:len(weight)]
	dst = dst[:len(weight)]
	var s0, s1, s2, s3 float32
	i := 0
	for ; i+4 <= len(x); i += 4 {
		s0 += x[i] * x[i]
		s1 += x[i+1] * x[i+1]
		s2 += x[i+2] * x[i+2]
		s3 += x[i+3] * x[i+3]
	}
	for ; i < len(x); i++ {
		s0 += x[i] * x[i]
	}
	mean := ((s0 + s1) + (s2 + s3)) / float32(len(x))
	scale := float32(1 / math.Sqrt(float64(mean+eps)))
	for i, v := range x {
		dst[i] = v * scale * weight[i]
	}
}

// rows is a matrix of any number of rows that lie ld elements apart.
type rows struct {
	data []float32
	ld   int
}

// normRows is rmsNorm for the first n rows of x, written to those of dst.
func normRows(dst, x rows, n int, weight []float32, eps float32) {
	for r := range n {
		rmsNorm(dst.data[r*dst.ld:], x.data[r*x.ld:], weight, eps)
	}
}

// gelu replaces every value by x * Phi(x), the exact GELU with erf.
func gelu(x []float32) {
	for i, v := range x {
		x[i] = float32(0.5 * float64(v) * (1 + math.Erf(float64(v)/math.Sqrt2)))
	}
}

// inverseFrequencies are 1 / theta^(2i/dim) for i below dim/2, rounded to
// float32 where transformers rounds them.
func inverseFrequencies(dim int, theta float64) []float32 {
	out := make([]float32, dim/2)
	for i := range out {
		exponent := float64(float32(2*i) / float32(dim))
		out[i] = 1 / float32(math.Pow(theta, exponent))
	}
	return out
}

// cosSin is the cosine and sine of position * frequency, the angle rounded to
// float32 as transformers does.
func cosSin(position int32, frequency float32) (cos, sin float32) {
	sin64, cos64 := math.Sincos(float64(float32(position) * frequency))
	return float32(cos64), float32(sin64)
}

// maxRopeTable bounds the tabulated positions; later ones are computed.
const maxRopeTable = 8192

// ropeTable holds cosines and sines of the text rotary embedding for the first
// positions: [position][HeadDim/2].
type ropeTable struct {
	half     int
	inverse  []float32
	axis     []uint8 // which of time, height, width turns frequency j
	cos, sin []float32
	rows     int
}

func newRopeTable(c Config) ropeTable {
	t := ropeTable{half: c.HeadDim / 2, inverse: inverseFrequencies(c.HeadDim, c.RopeTheta),
		rows: min(c.MaxPositions, maxRopeTable)}
	for axis, n := range c.MRopeSection {
		for range n {
			t.axis = append(t.axis, uint8(axis))
		}
	}
	t.cos = make([]float32, t.rows*t.half)
	t.sin = make([]float32, t.rows*t.half)
	for p := range t.rows {
		for j, f := range t.inverse {
			t.cos[p*t.half+j], t.sin[p*t.half+j] = cosSin(int32(p), f)
		}
	}
	return t
}

// angles fills cos and sin, each HeadDim/2 long, for one position.
func (t *ropeTable) angles(cos, sin []float32, p Position) {
	if p[0] == p[1] && p[0] == p[2] && int(p[0]) < t.rows {
		copy(cos, t.cos[int(p[0])*t.half:(int(p[0])+1)*t.half])
		copy(sin, t.sin[int(p[0])*t.half:(int(p[0])+1)*t.half])
		return
	}
	for j, axis := range t.axis {
		cos[j], sin[j] = cosSin(p[axis], t.inverse[j])
	}
}

// rotate turns the pairs (x[j], x[j+half]) by the given angles, into dst.
func rotate(dst, x, cos, sin []float32) {
	half := len(cos)
	dst, x, sin = dst[:2*half], x[:2*half], sin[:half]
	for j, c := range cos {
		a, b, s := x[j], x[j+half], sin[j]
		dst[j] = a*c - b*s
		dst[j+half] = b*c + a*s
	}
}

// grow returns buffer with n elements, reusing it when it can. It takes half as
// much again when it cannot, so that slowly growing needs rarely allocate.
func grow(buffer []float32, n int) []float32 {
	if cap(buffer) < n {
		return make([]float32, n, n+n/2)
	}
	return buffer[:n]
}
