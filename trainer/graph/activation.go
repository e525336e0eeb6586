package graph

import "math"

// swiglu adds y = silu(gate) * up, where a row of x is gate then up.
func (n *network) swiglu(name string, x value, rows rowCount) value {
	cols := x.cols / 2
	sigmoid := make([]float32, x.rows*cols) // of gate, kept for the gradient
	run := func(a [][]float32, y []float32) {
		for r := range rows(n.chunk) {
			gate, up := a[0][2*r*cols:(2*r+1)*cols], a[0][(2*r+1)*cols:(2*r+2)*cols]
			to, s := y[r*cols:(r+1)*cols], sigmoid[r*cols:(r+1)*cols]
			for j, g := range gate {
				s[j] = 1 / (1 + exp32(-g))
				to[j] = g * s[j] * up[j]
			}
		}
	}
	// silu'(g) = s + g s (1-s), s the sigmoid of g.
	back := func(a [][]float32, dx []float32) {
		dy := a[2]
		for r := range rows(n.chunk) {
			gate, up := a[0][2*r*cols:(2*r+1)*cols], a[0][(2*r+1)*cols:(2*r+2)*cols]
			dGate, dUp := dx[2*r*cols:(2*r+1)*cols], dx[(2*r+1)*cols:(2*r+2)*cols]
			d, s := dy[r*cols:(r+1)*cols], sigmoid[r*cols:(r+1)*cols]
			for j, g := range gate {
				silu := g * s[j]
				dUp[j] = d[j] * silu
				dGate[j] = d[j] * up[j] * (s[j] + silu*(1-s[j]))
			}
		}
	}
	return n.apply(operation{name: name, rows: x.rows, cols: cols, run: run, back: []gradient{{run: back}}}, x)
}

// gelu adds y = x * Phi(x), Phi the normal distribution function.
func (n *network) gelu(name string, x value, rows rowCount) value {
	run := func(a [][]float32, y []float32) {
		live := rows(n.chunk) * x.cols
		for i, v := range a[0][:live] {
			y[i] = float32(float64(v) * phi(float64(v)))
		}
	}
	back := func(a [][]float32, dx []float32) {
		live := rows(n.chunk) * x.cols
		for i, v := range a[0][:live] {
			z := float64(v)
			dx[i] = a[2][i] * float32(phi(z)+z*math.Exp(-z*z/2)/math.Sqrt(2*math.Pi))
		}
	}
	return n.apply(operation{name: name, rows: x.rows, cols: x.cols, run: run, back: []gradient{{run: back}}}, x)
}

// phi is the normal distribution function. erfc keeps its relative accuracy in
// the left tail, where 1+erf would cancel.
func phi(x float64) float64 { return math.Erfc(-x/math.Sqrt2) / 2 }

// exp32 is e^x in float32 with a relative error below 2e-7: 2^k by the exponent
// bits, e^r of the rest (|r| <= ln2/2) by a polynomial of degree 6. Below -87
// the result is 0; above 88 it is +Inf, as is NaN's NaN.
func exp32(x float32) float32 {
	if !(x > -87) {
		if x != x {
			return x
		}
		return 0
	}
	if x > 88 {
		return float32(math.Inf(1))
	}
	const magic = 1.5 * (1 << 23) // adding it rounds to the nearest integer
	t := x*math.Log2E + magic
	k := int32(math.Float32bits(t)) - int32(math.Float32bits(magic))
	f := t - magic
	// ln2 in two parts, so that the reduction is exact to the last bit.
	r := (x - f*0.693359375) - f*-2.12194440e-4
	p := float32(1.0 / 720)
	p = p*r + 1.0/120
	p = p*r + 1.0/24
	p = p*r + 1.0/6
	p = p*r + 0.5
	p = p*r*r + r + 1
	return p * math.Float32frombits(uint32(k+127)<<23)
}
