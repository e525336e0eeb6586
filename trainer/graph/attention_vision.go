package graph

import "github.com/uadt-train/uadt-train/internal/matmul"

// visionAttention adds attention of packed patch rows within windows, every
// patch attending to all patches of its window.
func (n *network) visionAttention(name string, qkv value, windows func(c *chunk) []span) value {
	v := n.config.Vision
	a := newAttention(n, v.Heads, v.Heads, v.HeadDim(), qkv.rows)
	run := func(in [][]float32, o []float32) {
		a.rotateAll(in[0], n.chunk.vision.patches, n.chunk.vision.cos, n.chunk.vision.sin)
		at, size := 0, 0
		for _, w := range windows(n.chunk) {
			size += a.heads * w.len() * w.len()
		}
		a.reserve(size)
		for _, w := range windows(n.chunk) {
			for h := range a.heads {
				p := matmul.Of(a.take(&at, w.len()*w.len()), w.len(), w.len())
				n.work.Mul(p, a.queries(w, h), a.keys(w, h).T(), false)
				for i := range p.Rows {
					causalSoftmax(nil, p.Data[i*p.Cols:(i+1)*p.Cols], p.Cols)
				}
				n.work.Mul(a.outputs(o, w, h), p, a.values(in[0], w, h), false)
			}
		}
	}
	back := func(in [][]float32, dqkv []float32) {
		rows := n.chunk.vision.patches
		a.zeroGradients(dqkv, rows)
		at := 0
		for _, w := range windows(n.chunk) {
			for h := range a.heads {
				o, do := a.outputs(in[1], w, h), a.outputs(in[2], w, h)
				a.backward(weightsBlock{p: a.take(&at, w.len()*w.len()), q: a.queries(w, h), k: a.keys(w, h), v: a.values(in[0], w, h),
					do: do, dq: a.dQueries(w, h), dk: a.dKeys(w, h), dv: a.values(dqkv, w, h), delta: a.deltas(w, o, do)})
			}
		}
		a.unrotateAll(dqkv, rows, n.chunk.vision.cos, n.chunk.vision.sin)
	}
	return n.apply(operation{name: name, rows: qkv.rows, cols: a.heads * a.dim, run: run, back: []gradient{{run: back}}}, qkv)
}
