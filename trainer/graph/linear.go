package graph

import "github.com/uadt-train/uadt-train/internal/matmul"

// linear is y = x w^T (+ bias) (+ residual): x [n, in], w [out, in] as in
// PyTorch, bias [1, out], residual [n, out].
type linear struct {
	name        string
	w           string // block of the weight
	bias        string // block of the bias; empty is none
	rows        rowCount
	x, residual *value // residual may be nil
	pixels      bool   // x is the chunk's pixels, not a node: the patch embedding
	capacity    int    // rows of the output
}

// linear adds the operation to the graph. Its inputs are x (unless pixels),
// weight, bias and residual, as far as there are.
func (n *network) linear(l linear) value {
	w := n.weight(l.w)
	out, in := w.rows, w.cols
	var inputs []value
	var back []gradient
	if !l.pixels {
		inputs = append(inputs, *l.x)
		back = append(back, gradient{run: func(a [][]float32, dx []float32) { // dx = dy w
			r := l.rows(n.chunk)
			n.work.Mul(matmul.Of(dx, r, in), matmul.Of(a[len(a)-1], r, out), matmul.Of(a[1], out, in), false)
		}})
	}
	at := len(inputs) // place of the weight
	inputs = append(inputs, w)
	back = append(back, gradient{run: func(a [][]float32, dw []float32) {
		n.weightGradient(l, a, matmul.Of(dw, out, in))
	}})
	if l.bias != "" {
		inputs = append(inputs, n.weight(l.bias))
		back = append(back, gradient{run: func(a [][]float32, db []float32) {
			columnSums(db, a[len(a)-1], l.rows(n.chunk))
		}})
	}
	if l.residual != nil {
		inputs = append(inputs, *l.residual)
		back = append(back, gradient{pass: true})
	}
	run := func(a [][]float32, y []float32) {
		y = y[:l.rows(n.chunk)*out]
		add := l.start(y, a[at+1:])
		wt := matmul.Of(a[at], out, in).T()
		if !l.pixels {
			r := l.rows(n.chunk)
			n.work.Mul(matmul.Of(y, r, out), matmul.Of(a[0], r, in), wt, add)
			return
		}
		row := 0
		for _, image := range n.chunk.vision.pixels {
			k := len(image) / in
			n.work.Mul(matmul.Of(y[row*out:], k, out), matmul.Of(image, k, in), wt, add)
			row += k
		}
	}
	return n.apply(operation{name: l.name, rows: l.capacity, cols: out, run: run, back: back}, inputs...)
}

// start fills y with what the product is added to, from the inputs behind the
// weight, and says whether there is anything.
func (l linear) start(y []float32, rest [][]float32) bool {
	switch {
	case l.residual != nil && l.bias != "":
		addRow(y, rest[1], rest[0])
	case l.residual != nil:
		copy(y, rest[0])
	case l.bias != "":
		fillRow(y, rest[0])
	default:
		return false
	}
	return true
}

// weightGradient is dw = dy^T x.
func (n *network) weightGradient(l linear, a [][]float32, dw matmul.View) {
	dy, out, in := a[len(a)-1], dw.Rows, dw.Cols
	if !l.pixels {
		r := l.rows(n.chunk)
		n.work.Mul(dw, matmul.Of(dy, r, out).T(), matmul.Of(a[0], r, in), false)
		return
	}
	clear(dw.Data[:out*in])
	row := 0
	for _, image := range n.chunk.vision.pixels {
		k := len(image) / in
		n.work.Mul(dw, matmul.Of(dy[row*out:], k, out).T(), matmul.Of(image, k, in), true)
		row += k
	}
}

// columnSums sets sum to the sum of the rows of x.
func columnSums(sum, x []float32, rows int) {
	clear(sum)
	cols := len(sum)
	for r := range rows {
		for j, v := range x[r*cols : (r+1)*cols] {
			sum[j] += v
		}
	}
}

// fillRow sets every row of y to row.
func fillRow(y, row []float32) {
	for len(y) > 0 {
		y = y[copy(y, row):]
	}
}

// addRow sets every row of y to that of x plus row.
func addRow(y, x, row []float32) {
	for from := 0; from < len(y); from += len(row) {
		to, x := y[from:from+len(row)], x[from:from+len(row)]
		for j, v := range row {
			to[j] = x[j] + v
		}
	}
}
