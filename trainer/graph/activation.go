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
			expSub(s, gate, -1, 0)
			for j, g := range gate {
				s[j] = 1 / (1 + s[j])
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
