package graph

import (
	"math"

	"github.com/uadt-train/uadt-train/internal/matmul"
)

// textAttention adds causal attention of packed rows: a prompt attends to
// itself, a trace to the whole prompt and to itself.
func (n *network) textAttention(name string, qkv value) value {
	c := n.config
	a := newAttention(n, c.Heads, c.KVHeads, c.HeadDim, qkv.rows)
	run := func(in [][]float32, o []float32) {
		a.rotateAll(in[0], len(n.chunk.tokens), n.chunk.cos, n.chunk.sin)
		at, size := 0, 0
		for _, s := range n.chunk.segments {
			size += a.heads * s.weights()
		}
		a.reserve(size)
		for _, s := range n.chunk.segments {
			for h := range a.heads {
				a.segmentForward(s, h, in[0], o, &at)
			}
		}
	}
	back := func(in [][]float32, dqkv []float32) {
		rows := len(n.chunk.tokens)
		a.zeroGradients(dqkv, rows)
		at := 0
		for _, s := range n.chunk.segments {
			for h := range a.heads {
				a.segmentBackward(textPass{s, h, in[0], in[1], in[2], dqkv}, &at)
			}
		}
		a.unrotateAll(dqkv, rows, n.chunk.cos, n.chunk.sin)
	}
	return n.apply(operation{name: name, rows: qkv.rows, cols: a.heads * a.dim, run: run, back: []gradient{{run: back}}}, qkv)
}

// weights counts the attention weights of one head of the segment.
func (s segment) weights() int {
	n := s.prompt.len() * (s.prompt.len() + s.rest().len())
	for _, t := range s.traces {
		n += t.len() * t.len()
	}
	return n
}

// segmentForward computes one head of one segment.
func (a *attention) segmentForward(s segment, h int, qkv, o []float32, at *int) {
	work := &a.n.work
	p := matmul.Of(a.take(at, s.prompt.len()*s.prompt.len()), s.prompt.len(), s.prompt.len())
	work.Mul(p, a.queries(s.prompt, h), a.keys(s.prompt, h).T(), false)
	for i := range p.Rows {
		causalSoftmax(nil, p.Data[i*p.Cols:(i+1)*p.Cols], i+1)
	}
	work.Mul(a.outputs(o, s.prompt, h), p, a.values(qkv, s.prompt, h), false)

	rest := s.rest()
	if rest.len() == 0 {
		return
	}
	shared := matmul.Of(a.take(at, rest.len()*p.Cols), rest.len(), p.Cols)
	work.Mul(shared, a.queries(rest, h), a.keys(s.prompt, h).T(), false)
	for _, t := range s.traces {
		own := matmul.Of(a.take(at, t.len()*t.len()), t.len(), t.len())
		work.Mul(own, a.queries(t, h), a.keys(t, h).T(), false)
		for i := range own.Rows {
			row := t.from - rest.from + i
			causalSoftmax(shared.Data[row*shared.Cols:(row+1)*shared.Cols], own.Data[i*own.Cols:(i+1)*own.Cols], i+1)
		}
		work.Mul(a.outputs(o, t, h), own, a.values(qkv, t, h), false)
	}
	work.Mul(a.outputs(o, rest, h), shared, a.values(qkv, s.prompt, h), true)
}

// textPass is what the backward pass of one head of one segment works on.
type textPass struct {
	s    segment
	h    int
	qkv  []float32
	o    []float32
	do   []float32
	dqkv []float32
}

// segmentBackward is the gradient of segmentForward, in the same order of
// blocks.
func (a *attention) segmentBackward(t textPass, at *int) {
	prompt, h := t.s.prompt, t.h
	blockOf := func(q, k span, p []float32, delta []float32) weightsBlock {
		return weightsBlock{p: p, q: a.queries(q, h), k: a.keys(k, h), v: a.values(t.qkv, k, h),
			do: a.outputs(t.do, q, h), dq: a.dQueries(q, h), dk: a.dKeys(k, h), dv: a.values(t.dqkv, k, h), delta: delta}
	}
	p := a.take(at, prompt.len()*prompt.len())
	a.backward(blockOf(prompt, prompt, p, a.deltas(prompt, a.outputs(t.o, prompt, h), a.outputs(t.do, prompt, h))))
	rest := t.s.rest()
	if rest.len() == 0 {
		return
	}
	delta := a.deltas(rest, a.outputs(t.o, rest, h), a.outputs(t.do, rest, h))
	a.backward(blockOf(rest, prompt, a.take(at, rest.len()*prompt.len()), delta))
	for _, trace := range t.s.traces {
		own := a.take(at, trace.len()*trace.len())
		a.backward(blockOf(trace, trace, own, delta[trace.from-rest.from:trace.to-rest.from]))
	}
}

// causalSoftmax turns scores into weights over all of shared and the first n
// of own; the rest of own becomes 0. The largest score is taken out first, so
// that nothing overflows.
func causalSoftmax(shared, own []float32, n int) {
	top := largest(shared, largest(own[:n], -math.MaxFloat32))
	expSub(shared, shared, 1, top)
	expSub(own[:n], own[:n], 1, top)
	scale := 1 / (sum(shared) + sum(own[:n]))
	for j := range shared {
		shared[j] *= scale
	}
	for j := range own[:n] {
		own[j] *= scale
	}
	clear(own[n:])
}
