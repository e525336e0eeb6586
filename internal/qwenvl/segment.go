package qwenvl

import (
	"math"

	"github.com/uadt-train/uadt-train/internal/qwenvl/kernel"
)

// segment is the key-value cache of consecutive positions for all layers and
// key-value heads. Per head, keys are panels of 16 positions [dim][16], so that
// q times K^T is a product with packed panels; values are panels of 16
// dimensions [position][16], so that p times V is one too.
type segment struct {
	capacity int // positions, a multiple of 16
	dim      int // head size
	heads    int // key-value heads
	data     []float32
}

func segmentSize(layers, heads, dim, capacity int) int {
	return layers * heads * capacity * (dim + kernel.Pad(dim))
}

func newSegment(layers, heads, dim, capacity int) segment {
	capacity = kernel.Pad(capacity)
	return segment{capacity: capacity, dim: dim, heads: heads,
		data: make([]float32, segmentSize(layers, heads, dim, capacity))}
}

// head returns the key and value panels of one head of one layer.
func (s *segment) head(at place) (keys []float32, values panels) {
	size := s.capacity * (s.dim + kernel.Pad(s.dim))
	data := s.data[(at.layer*s.heads+at.head)*size:][:size]
	return data[:s.capacity*s.dim], panels{data[s.capacity*s.dim:], s.capacity}
}

// put stores key and value of one position.
func (s *segment) put(at place, position int, key, value []float32) {
	keys, values := s.head(at)
	storeKey(keys, position, key[:s.dim])
	storeValue(values.data, s.capacity, position, value[:s.dim])
}

func storeKey(keys []float32, position int, key []float32) {
	panel := keys[position/kernel.Width*kernel.Width*len(key)+position%kernel.Width:]
	for d, v := range key {
		panel[d*kernel.Width] = v
	}
}

func storeValue(values []float32, capacity, position int, value []float32) {
	for p := 0; p < len(value); p += kernel.Width {
		copy(values[p*capacity+position*kernel.Width:], value[p:min(p+kernel.Width, len(value))])
	}
}

// zeroStart is where products without a bias start.
var zeroStart [kernel.Width]float32

// scoreKeys writes q times the first n keys to scores[r][0:Pad(n)] for count
// rows. The rows of q lie head size apart.
func scoreKeys(scores, q rows, count int, keys []float32, n int) {
	for p := 0; p < n; p += kernel.Width {
		kernel.Panel(kernel.Call{K: q.ld, Rows: count, X: q.data, LDX: q.ld, W: keys[p*q.ld:],
			Init: zeroStart[:], C: scores.data[p:], LDC: scores.ld})
	}
}

// panels are values of a segment with room for capacity positions.
type panels struct {
	data     []float32
	capacity int
}

// addValues adds probs[r][0:n] times the first n values to count rows of out,
// whose rows lie the padded head size apart.
func addValues(out, probs rows, count int, values panels, n int) {
	for p := 0; p < out.ld; p += kernel.Width {
		kernel.Panel(kernel.Call{K: n, Rows: count, X: probs.data, LDX: probs.ld, W: values.data[p*values.capacity:],
			Init: out.data[p:], LDInit: out.ld, C: out.data[p:], LDC: out.ld})
	}
}

var minusInf = float32(math.Inf(-1))

func fill(x []float32, v float32) {
	for i := range x {
		x[i] = v
	}
}
