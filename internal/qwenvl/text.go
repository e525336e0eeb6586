package qwenvl

import (
	"math"

	"github.com/uadt-train/uadt-train/internal/qwenvl/kernel"
)

// textScratch is the working memory of one goroutine for rows of the text
// model. It grows to the largest batch seen and is reused.
type textScratch struct {
	x, h, qkv, gate, up []float32 // [rows][padded width]
	attended            []float32 // [rows][Heads*HeadDim]
	cos, sin            []float32 // [rows][HeadDim/2]
	key                 []float32 // [HeadDim]
	q, scores, out      []float32 // of the rows attended at a time
	logits              []float32 // [rows][Pad(VocabSize)]
}

// dims are the sizes of the text model that the loops use again and again.
type dims struct {
	h, ld              int // width and stride of the residual stream
	d, half, wide      int // head size, half of it, padded
	kv, group, queries int // key-value heads, query heads per one of them, all query heads
	ldq, ldi, ldv      int // strides of qkv, gate, logits
}

func (m *Model) dims() dims {
	c := m.Config
	return dims{h: c.HiddenSize, ld: kernel.Pad(c.HiddenSize), d: c.HeadDim, half: c.HeadDim / 2,
		wide: kernel.Pad(c.HeadDim), kv: c.KVHeads, group: c.Heads / c.KVHeads, queries: c.Heads,
		ldq: kernel.Pad((c.Heads + 2*c.KVHeads) * c.HeadDim), ldi: kernel.Pad(c.IntermediateSize),
		ldv: kernel.Pad(c.VocabSize)}
}

func (s *textScratch) reserve(k dims, n int) {
	s.x, s.h = grow(s.x, n*k.ld), grow(s.h, n*k.ld)
	s.qkv = grow(s.qkv, n*k.ldq)
	s.gate, s.up = grow(s.gate, n*k.ldi), grow(s.up, n*k.ldi)
	s.attended = grow(s.attended, n*k.queries*k.d)
	s.cos, s.sin = grow(s.cos, n*k.half), grow(s.sin, n*k.half)
	s.key = grow(s.key, k.d)
}

// layerIn norms the residual stream and projects it to queries, keys and values.
func (m *Model) layerIn(s *textScratch, k dims, layer *textLayer, n int) {
	normRows(rows{s.h, k.ld}, rows{s.x, k.ld}, n, layer.inNorm, m.Config.RMSNormEps)
	layer.qkv.Mul(s.qkv, k.ldq, s.h, k.ld, n)
}

// layerOut adds attention output and MLP to the residual stream of rows first
// to end-1.
func (m *Model) layerOut(s *textScratch, k dims, layer *textLayer, first, end int) {
	n := end - first
	x, h := s.x[first*k.ld:], s.h[first*k.ld:]
	width := k.queries * k.d
	layer.out.MulAdd(x, k.ld, s.attended[first*width:], width, n)
	normRows(rows{h, k.ld}, rows{x, k.ld}, n, layer.postNorm, m.Config.RMSNormEps)
	gate, up := s.gate[:n*k.ldi], s.up[:n*k.ldi]
	layer.gate.Mul(gate, k.ldi, h, k.ld, n)
	layer.up.Mul(up, k.ldi, h, k.ld, n)
	kernel.SiLUMul(gate, up)
	layer.down.MulAdd(x, k.ld, gate, k.ldi, n)
}

// headRows computes the logits of rows first to end-1 into s.logits.
func (m *Model) headRows(s *textScratch, k dims, first, end int) {
	n := end - first
	normRows(rows{s.h, k.ld}, rows{s.x[first*k.ld:], k.ld}, n, m.finalNorm, m.Config.RMSNormEps)
	s.logits = grow(s.logits, n*k.ldv)
	m.head.Mul(s.logits, k.ldv, s.h, k.ld, n)
}

// prefix is a prefilled prompt: its keys and values, and the logits after its
// last token. Immutable once filled; shared by all traces of a request and by
// later requests with the same prompt, images and salt.
type prefix struct {
	tokens []int32
	next   int       // M-RoPE position of the first response token
	cache  segment   // keys and values of the prompt
	logits []float32 // [Pad(VocabSize)] after the last token
}

// prefill runs a prompt through the text model. features holds, for each span,
// the merged image tokens [tokens][HiddenSize]; they are placed by position.
func (m *Model) prefill(s *textScratch, tokens []int32, spans []ImageSpan, features [][]float32) (*prefix, error) {
	positions, next, err := m.Config.Positions(len(tokens), spans)
	if err != nil {
		return nil, err
	}
	k := m.dims()
	n := len(tokens)
	s.reserve(k, n)
	m.embed(s, k, tokens, spans, features)
	for t, p := range positions {
		m.rope.angles(s.cos[t*k.half:(t+1)*k.half], s.sin[t*k.half:(t+1)*k.half], p)
	}
	p := &prefix{tokens: tokens, next: next, cache: newSegment(len(m.layers), k.kv, k.d, n)}
	for i := range m.layers {
		layer := &m.layers[i]
		m.layerIn(s, k, layer, n)
		// After the last layer only the last row is read: skip the others.
		first := 0
		if i == len(m.layers)-1 {
			first = n - 1
		}
		for head := range k.kv {
			m.attendPrompt(s, k, &p.cache, place{i, head}, [2]int{first, n})
		}
		m.layerOut(s, k, layer, first, n)
	}
	m.headRows(s, k, n-1, n)
	p.logits = append([]float32(nil), s.logits...)
	return p, nil
}

// embed fills the residual stream with token embeddings and image features.
func (m *Model) embed(s *textScratch, k dims, tokens []int32, spans []ImageSpan, features [][]float32) {
	clear(s.x)
	for t, id := range tokens {
		copy(s.x[t*k.ld:], m.embedding[int(id)*k.h:(int(id)+1)*k.h])
	}
	for i, span := range spans {
		for t := range len(features[i]) / k.h {
			copy(s.x[(span.Offset+t)*k.ld:], features[i][t*k.h:(t+1)*k.h])
		}
	}
}

// promptBlock is how many prompt positions are attended at a time.
const promptBlock = 16

// place names one key-value head of one layer.
type place struct{ layer, head int }

// attendPrompt stores keys and values of one head for all positions before
// span's end, and lets those of span attend to themselves and those before.
func (m *Model) attendPrompt(s *textScratch, k dims, cache *segment, at place, span [2]int) {
	keyAt, valueAt := (k.queries+at.head)*k.d, (k.queries+k.kv+at.head)*k.d
	for t := range span[1] {
		row := s.qkv[t*k.ldq:]
		rotate(s.key, row[keyAt:keyAt+k.d], s.cos[t*k.half:(t+1)*k.half], s.sin[t*k.half:(t+1)*k.half])
		cache.put(at, t, s.key, row[valueAt:])
	}
	keys, values := cache.head(at)
	scale := float32(1 / math.Sqrt(float64(k.d)))
	for top := span[0]; top < span[1]; top += promptBlock {
		end := min(top+promptBlock, span[1])
		n := (end - top) * k.group
		padded := kernel.Pad(end)
		s.q, s.out, s.scores = grow(s.q, n*k.d), grow(s.out, n*k.wide), grow(s.scores, n*padded)
		for t := top; t < end; t++ {
			m.rotateQueries(s, k, (t-top)*k.group, t, at.head)
		}
		scoreKeys(rows{s.scores, padded}, rows{s.q, k.d}, n, keys, end)
		clear(s.out)
		for r := range n {
			// Row r sees positions up to its own; the rest of the row becomes 0,
			// which adds nothing to the sums below.
			row := s.scores[r*padded : (r+1)*padded]
			fill(row[top+r/k.group+1:], minusInf)
			inverse := 1 / kernel.Softmax(row, scale)
			for i := range row {
				row[i] *= inverse
			}
		}
		addValues(rows{s.out, k.wide}, rows{s.scores, padded}, n, values, end)
		for t := top; t < end; t++ {
			m.gatherHeads(s, k, (t-top)*k.group, t, at.head)
		}
	}
}

// rotateQueries writes the rotated queries of row t that share key-value head
// head to s.q from row at on.
func (m *Model) rotateQueries(s *textScratch, k dims, at, t, head int) {
	cos, sin := s.cos[t*k.half:(t+1)*k.half], s.sin[t*k.half:(t+1)*k.half]
	row := s.qkv[t*k.ldq:]
	for g := range k.group {
		rotate(s.q[(at+g)*k.d:], row[(head*k.group+g)*k.d:], cos, sin)
	}
}

// gatherHeads copies attention outputs from s.out, from row at on, to row t.
func (m *Model) gatherHeads(s *textScratch, k dims, at, t, head int) {
	for g := range k.group {
		copy(s.attended[(t*k.queries+head*k.group+g)*k.d:][:k.d], s.out[(at+g)*k.wide:])
	}
}
