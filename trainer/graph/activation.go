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
	phi, bell := make([]float32, x.rows*x.cols), make([]float32, x.rows*x.cols) // Phi and exp(-x^2/2), kept for the gradient
	run := func(a [][]float32, y []float32) {
		live := rows(n.chunk) * x.cols
		normalDistribution(phi[:live], bell[:live], a[0][:live])
		for i, v := range a[0][:live] {
			y[i] = v * phi[i]
		}
	}
	back := func(a [][]float32, dx []float32) {
		const density = 1 / (math.Sqrt2 * 1.7724538509055159) // 1/sqrt(2 pi)
		for i, v := range a[0][:rows(n.chunk)*x.cols] {
			dx[i] = a[2][i] * (phi[i] + v*bell[i]*density)
		}
	}
	return n.apply(operation{name: name, rows: x.rows, cols: x.cols, run: run, back: []gradient{{run: back}}}, x)
}

// normalDistribution sets bell to exp(-x^2/2) and phi to the normal
// distribution function of x, with an absolute error below 2e-7: formula 7.1.26
// of Abramowitz and Stegun, erf(z) = 1 - t(a1 + t(a2 + ...)) exp(-z^2) with
// t = 1/(1 + pz) and z = |x|/sqrt(2), whose exponential is bell.
func normalDistribution(phi, bell, x []float32) {
	const (
		p                  = 0.3275911 / math.Sqrt2
		a1, a2, a3, a4, a5 = 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429
	)
	for i, v := range x {
		bell[i] = v * v
	}
	expSub(bell, bell, -0.5, 0)
	for i, v := range x {
		t := 1 / (1 + p*float32(math.Abs(float64(v))))
		tail := 0.5 * t * (a1 + t*(a2+t*(a3+t*(a4+t*a5)))) * bell[i] // Phi(-|x|)
		if v > 0 {
			tail = 1 - tail
		}
		phi[i] = tail
	}
}
