package graph

import (
	"math"

	"github.com/uadt-train/uadt-train/internal/matmul"
)

// attention is rotary attention over packed rows [query heads | key heads |
// value heads], with what the gradient needs kept from the forward pass.
type attention struct {
	n              *network
	heads, kvHeads int
	dim            int
	q, k           []float32 // [rows, heads*dim] and [rows, kvHeads*dim], rotated; q is scaled by 1/sqrt(dim)
	dq, dk         []float32 // their gradients
	probs          []float32 // attention weights, block after block in the order of the passes
	dp             []float32 // scratch for the gradient of one block
	delta          []float32 // scratch: sum of dO*O of every row of one head
}

// newAttention makes the state for capacity rows.
func newAttention(n *network, heads, kvHeads, dim, rows int) *attention {
	return &attention{n: n, heads: heads, kvHeads: kvHeads, dim: dim,
		q: make([]float32, rows*heads*dim), k: make([]float32, rows*kvHeads*dim),
		dq: make([]float32, rows*heads*dim), dk: make([]float32, rows*kvHeads*dim), delta: make([]float32, rows)}
}

// width is the length of a packed row.
func (a *attention) width() int { return (a.heads + 2*a.kvHeads) * a.dim }

// group is the number of query heads that share a key head.
func (a *attention) group() int { return a.heads / a.kvHeads }

// rotateAll fills q and k from packed rows.
func (a *attention) rotateAll(qkv []float32, rows int, cos, sin []float32) {
	d, half, w := a.dim, a.dim/2, a.width()
	scale := float32(1 / math.Sqrt(float64(d)))
	for r := range rows {
		c, s, from := cos[r*half:(r+1)*half], sin[r*half:(r+1)*half], qkv[r*w:(r+1)*w]
		for h := range a.heads {
			rotate(a.q[(r*a.heads+h)*d:], from[h*d:], c, s, scale)
		}
		for h := range a.kvHeads {
			rotate(a.k[(r*a.kvHeads+h)*d:], from[(a.heads+h)*d:], c, s, 1)
		}
	}
}

// unrotateAll writes the query and key parts of the packed gradient.
func (a *attention) unrotateAll(dqkv []float32, rows int, cos, sin []float32) {
	d, half, w := a.dim, a.dim/2, a.width()
	scale := float32(1 / math.Sqrt(float64(d)))
	for r := range rows {
		c, s, to := cos[r*half:(r+1)*half], sin[r*half:(r+1)*half], dqkv[r*w:(r+1)*w]
		for h := range a.heads {
			unrotate(to[h*d:], a.dq[(r*a.heads+h)*d:], c, s, scale)
		}
		for h := range a.kvHeads {
			unrotate(to[(a.heads+h)*d:], a.dk[(r*a.kvHeads+h)*d:], c, s, 1)
		}
	}
}

// part views rows of one head of a [rows, heads*dim] matrix that starts at
// column from of rows of the given width.
func part(data []float32, rows span, from, dim, width int) matmul.View {
	if rows.len() == 0 {
		return matmul.View{Cols: dim, Row: width, Col: 1}
	}
	return matmul.Strided(data[rows.from*width+from:], rows.len(), dim, width)
}

func (a *attention) queries(rows span, h int) matmul.View {
	return part(a.q, rows, h*a.dim, a.dim, a.heads*a.dim)
}

func (a *attention) keys(rows span, h int) matmul.View {
	return part(a.k, rows, h/a.group()*a.dim, a.dim, a.kvHeads*a.dim)
}

func (a *attention) dQueries(rows span, h int) matmul.View {
	return part(a.dq, rows, h*a.dim, a.dim, a.heads*a.dim)
}

func (a *attention) dKeys(rows span, h int) matmul.View {
	return part(a.dk, rows, h/a.group()*a.dim, a.dim, a.kvHeads*a.dim)
}

// values views the value part of packed rows, or of their gradient.
func (a *attention) values(qkv []float32, rows span, h int) matmul.View {
	return part(qkv, rows, (a.heads+a.kvHeads+h/a.group())*a.dim, a.dim, a.width())
}

// outputs views one head of the output, or of its gradient.
func (a *attention) outputs(data []float32, rows span, h int) matmul.View {
	return part(data, rows, h*a.dim, a.dim, a.heads*a.dim)
}

// reserve makes room for n attention weights before any is taken: growing later
// would leave earlier slices behind.
func (a *attention) reserve(n int) {
	if len(a.probs) < n {
		a.probs = make([]float32, n+n/4)
	}
}

// take returns the next n elements of the kept attention weights.
func (a *attention) take(at *int, n int) []float32 {
	out := a.probs[*at : *at+n : *at+n]
	*at += n
	return out
}

// scratch returns n elements of dp.
func (a *attention) scratch(n int) []float32 {
	if len(a.dp) < n {
		a.dp = make([]float32, n)
	}
	return a.dp[:n]
}

// deltas sets delta[i] of the rows to the inner product of output and its
// gradient: the part of the softmax gradient that a row has in common.
func (a *attention) deltas(rows span, o, do matmul.View) []float32 {
	out := a.delta[:rows.len()]
	for i := range out {
		out[i] = dot(o.Data[i*o.Row:i*o.Row+o.Cols], do.Data[i*do.Row:i*do.Row+do.Cols])
	}
	return out
}

// weightsBlock is what the backward pass works on of one block of attention weights p [queries,
// keys]: it adds to the gradients of the queries, the keys and the values.
type weightsBlock struct {
	p              []float32
	q, k, v        matmul.View
	do, dq, dk, dv matmul.View
	delta          []float32
}

func (a *attention) backward(b weightsBlock) {
	rows, cols := b.q.Rows, b.k.Rows
	if rows == 0 || cols == 0 {
		return
	}
	work := &a.n.work
	p := matmul.Of(b.p, rows, cols)
	ds := matmul.Of(a.scratch(rows*cols), rows, cols)
	work.Mul(b.dv, p.T(), b.do, true)
	work.Mul(ds, b.do, b.v.T(), false)
	for i := range rows {
		row, s, d := p.Data[i*cols:(i+1)*cols], ds.Data[i*cols:(i+1)*cols], b.delta[i]
		for j, w := range row {
			s[j] = w * (s[j] - d)
		}
	}
	work.Mul(b.dq, ds, b.k, true)
	work.Mul(b.dk, ds.T(), b.q, true)
}

// zeroGradients clears what a backward pass adds to.
func (a *attention) zeroGradients(dqkv []float32, rows int) {
	clear(a.dq[:rows*a.heads*a.dim])
	clear(a.dk[:rows*a.kvHeads*a.dim])
	w := a.width()
	for r := range rows {
		clear(dqkv[r*w+(a.heads+a.kvHeads)*a.dim : (r+1)*w])
	}
}
