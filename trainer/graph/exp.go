package graph

import "github.com/uadt-train/uadt-train/internal/qwenvl/kernel"

// expSub sets dst to exp(x*scale - shift), 0 where the exponent is below -87.
// Every element has the same bits wherever it stands: the rest that fills no
// vector goes through one too.
func expSub(dst, x []float32, scale, shift float32) {
	whole := len(x) &^ (kernel.Width - 1)
	kernel.ExpSub(dst[:whole], x[:whole], scale, shift)
	if whole == len(x) {
		return
	}
	var rest [kernel.Width]float32
	copy(rest[:], x[whole:])
	kernel.ExpSub(rest[:], rest[:], scale, shift)
	copy(dst[whole:len(x)], rest[:])
}

// largest is the maximum of x and least; NaN if any is.
func largest(x []float32, least float32) float32 {
	a, b, c, d := least, least, least, least
	i := 0
	for ; i+4 <= len(x); i += 4 {
		a, b, c, d = max(a, x[i]), max(b, x[i+1]), max(c, x[i+2]), max(d, x[i+3])
	}
	for ; i < len(x); i++ {
		a = max(a, x[i])
	}
	return max(max(a, b), max(c, d))
}

// sum adds x in four chains that are added in a fixed order.
func sum(x []float32) float32 {
	var s0, s1, s2, s3 float32
	i := 0
	for ; i+4 <= len(x); i += 4 {
		s0 += x[i]
		s1 += x[i+1]
		s2 += x[i+2]
		s3 += x[i+3]
	}
	for ; i < len(x); i++ {
		s0 += x[i]
	}
	return (s0 + s1) + (s2 + s3)
}
