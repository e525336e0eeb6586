package graph

import "math"

// norm adds y = x * w / sqrt(mean(x^2) + eps) over the columns of x; w is one
// row. rows counts the live rows of x.
func (n *network) norm(weight string, x value, eps float32, rows rowCount) value {
	w := n.weight(weight)
	cols := w.cols
	inverse := make([]float32, x.rows) // 1/sqrt(mean(x^2)+eps) of every row, kept for the gradients
	run := func(a [][]float32, y []float32) {
		x, w := a[0], a[1][:cols]
		for r := range rows(n.chunk) {
			row, to := x[r*cols:(r+1)*cols], y[r*cols:(r+1)*cols]
			inv := float32(1 / math.Sqrt(float64(dot(row, row)/float32(cols)+eps)))
			inverse[r] = inv
			for j, v := range row {
				to[j] = v * inv * w[j]
			}
		}
	}
	// With g = dy*w: dx = inv*g - x * inv^3 * mean(g*x).
	dx := func(a [][]float32, dx []float32) {
		x, w, dy := a[0], a[1][:cols], a[3]
		for r := range rows(n.chunk) {
			row, g, to := x[r*cols:(r+1)*cols], dy[r*cols:(r+1)*cols], dx[r*cols:(r+1)*cols]
			inv := inverse[r]
			var sum float32
			for j, v := range row {
				sum += v * g[j] * w[j]
			}
			k := sum / float32(cols) * inv * inv
			for j, v := range row {
				to[j] = inv * (g[j]*w[j] - v*k)
			}
		}
	}
	dw := func(a [][]float32, dw []float32) {
		x, dy := a[0], a[3]
		dw = dw[:cols]
		clear(dw)
		for r := range rows(n.chunk) {
			row, g := x[r*cols:(r+1)*cols], dy[r*cols:(r+1)*cols]
			inv := inverse[r]
			for j, v := range row {
				dw[j] += v * inv * g[j]
			}
		}
	}
	return n.apply(operation{name: weight, rows: x.rows, cols: cols, run: run, back: []gradient{{run: dx}, {run: dw}}}, x, w)
}

// dot is the inner product, in four chains that are added in a fixed order.
func dot(x, y []float32) float32 {
	y = y[:len(x)]
	var s0, s1, s2, s3 float32
	i := 0
	for ; i+4 <= len(x); i += 4 {
		s0 += x[i] * y[i]
		s1 += x[i+1] * y[i+1]
		s2 += x[i+2] * y[i+2]
		s3 += x[i+3] * y[i+3]
	}
	for ; i < len(x); i++ {
		s0 += x[i] * y[i]
	}
	return (s0 + s1) + (s2 + s3)
}
