package graph

import "github.com/uadt-train/uadt-train/internal/qwenvl"

// visionEps is the epsilon of the vision tower's norms, which config.json does
// not carry: transformers' Qwen2_5_VLVisionBlock fixes it.
const visionEps = 1e-6

// vision adds the tower and the merger: [features, hidden] in window order.
func (n *network) vision() value {
	v := n.config.Vision
	unit := v.MergeSize * v.MergeSize
	rows := n.cap.features * unit
	x := n.linear(linear{name: "patch_embed", w: qwenvl.NamePatchEmbed, rows: patchRows, pixels: true, capacity: rows})
	for i := range v.Depth {
		p := qwenvl.BlockPrefix(i)
		windows := func(c *chunk) []span { return c.vision.windows }
		if v.FullAttention[i] {
			windows = func(c *chunk) []span { return c.vision.frames }
		}
		y := n.norm(p+"norm1.weight", x, visionEps, patchRows)
		y = n.linear(linear{name: p + "qkv", w: p + "attn.qkv.weight", bias: p + "attn.qkv.bias", rows: patchRows, x: &y, capacity: rows})
		y = n.visionAttention(p+"attention", y, windows)
		x = n.linear(linear{name: p + "proj", w: p + "attn.proj.weight", bias: p + "attn.proj.bias", rows: patchRows, x: &y, residual: ptr(x), capacity: rows})
		y = n.norm(p+"norm2.weight", x, visionEps, patchRows)
		y = n.linear(linear{name: p + "gate_up", w: p + "mlp.gate_up.weight", bias: p + "mlp.gate_up.bias", rows: patchRows, x: &y, capacity: rows})
		y = n.swiglu(p+"swiglu", y, patchRows)
		x = n.linear(linear{name: p + "down", w: p + "mlp.down_proj.weight", bias: p + "mlp.down_proj.bias", rows: patchRows, x: &y, residual: ptr(x), capacity: rows})
	}
	x = n.norm(qwenvl.NameMergerNorm, x, visionEps, patchRows)
	x = n.merge(x, unit)
	features := func(c *chunk) int { return c.vision.patches / unit }
	x = n.linear(linear{name: "merger.in", w: qwenvl.NameMergerIn + ".weight", bias: qwenvl.NameMergerIn + ".bias", rows: features, x: &x, capacity: n.cap.features})
	x = n.gelu("merger.gelu", x, features)
	return n.linear(linear{name: "merger.out", w: qwenvl.NameMergerOut + ".weight", bias: qwenvl.NameMergerOut + ".bias", rows: features, x: &x, capacity: n.cap.features})
}

func ptr(v value) *value { return &v }

// merge puts unit adjacent rows side by side. Data does not move.
func (n *network) merge(x value, unit int) value {
	forward := func(a [][]float32, y []float32) {
		copy(y, a[0][:n.chunk.vision.patches*x.cols])
	}
	back := func(a [][]float32, dx []float32) {
		copy(dx, a[2][:n.chunk.vision.patches*x.cols])
	}
	return n.apply(operation{name: "merger.side_by_side", rows: x.rows / unit, cols: x.cols * unit, run: forward, back: []gradient{{run: back}}}, x)
}

// text adds the decoder on token embeddings and image features, up to
// log-probability and entropy [targets, 2].
func (n *network) text(features value) value {
	c := n.config
	x := n.embed(features)
	for i := range c.Layers {
		p := qwenvl.LayerPrefix(i)
		y := n.norm(p+"input_layernorm.weight", x, c.RMSNormEps, tokenRows)
		y = n.linear(linear{name: p + "qkv", w: p + "self_attn.qkv.weight", bias: p + "self_attn.qkv.bias", rows: tokenRows, x: &y, capacity: n.cap.tokens})
		y = n.textAttention(p+"attention", y)
		x = n.linear(linear{name: p + "o_proj", w: p + "self_attn.o_proj.weight", rows: tokenRows, x: &y, residual: ptr(x), capacity: n.cap.tokens})
		y = n.norm(p+"post_attention_layernorm.weight", x, c.RMSNormEps, tokenRows)
		y = n.linear(linear{name: p + "gate_up", w: p + "mlp.gate_up.weight", rows: tokenRows, x: &y, capacity: n.cap.tokens})
		y = n.swiglu(p+"swiglu", y, tokenRows)
		x = n.linear(linear{name: p + "down", w: p + "mlp.down_proj.weight", rows: tokenRows, x: &y, residual: ptr(x), capacity: n.cap.tokens})
	}
	x = n.gather(x)
	x = n.norm(qwenvl.NameFinalNorm, x, c.RMSNormEps, headRows)
	w := qwenvl.NameHead
	if c.TieEmbeddings {
		w = qwenvl.NameEmbedding
	}
	logits := n.linear(linear{name: "lm_head", w: w, rows: headRows, x: &x, capacity: n.cap.head})
	return n.crossEntropy(logits)
}

// embed adds the rows of the embedding that the tokens name, image positions
// taking the image's features instead: by prompt position, never by token id.
func (n *network) embed(features value) value {
	e := n.weight(qwenvl.NameEmbedding)
	h := e.cols
	run := func(a [][]float32, x []float32) {
		for i, id := range n.chunk.tokens {
			from := a[0][int(id)*h:]
			if f := n.chunk.feature[i]; f >= 0 {
				from = a[1][int(f)*h:]
			}
			copy(x[i*h:(i+1)*h], from)
		}
	}
	scatter := func(to, dx []float32, at func(i int) int) {
		clear(to)
		for i := range n.chunk.tokens {
			if row := at(i); row >= 0 {
				sum := to[row*h : (row+1)*h]
				for j, v := range dx[i*h : (i+1)*h] {
					sum[j] += v
				}
			}
		}
	}
	dE := func(a [][]float32, to []float32) {
		scatter(to, a[3], func(i int) int {
			if n.chunk.feature[i] >= 0 {
				return -1
			}
			return int(n.chunk.tokens[i])
		})
	}
	dF := func(a [][]float32, to []float32) {
		scatter(to, a[3], func(i int) int { return int(n.chunk.feature[i]) })
	}
	return n.apply(operation{name: "embed", rows: n.cap.tokens, cols: h, run: run, back: []gradient{{run: dE}, {run: dF}}}, e, features)
}

// gather adds the token rows whose logits are wanted.
func (n *network) gather(x value) value {
	h := x.cols
	run := func(a [][]float32, y []float32) {
		for i, row := range n.chunk.head {
			copy(y[i*h:(i+1)*h], a[0][int(row)*h:])
		}
	}
	back := func(a [][]float32, dx []float32) {
		clear(dx[:len(n.chunk.tokens)*h])
		for i, row := range n.chunk.head { // rows occur once
			copy(dx[int(row)*h:(int(row)+1)*h], a[2][i*h:])
		}
	}
	return n.apply(operation{name: "gather", rows: n.cap.head, cols: h, run: run, back: []gradient{{run: back}}}, x)
}
