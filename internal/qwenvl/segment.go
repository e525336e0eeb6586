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
func (s *segment) head(layer, head int) (keys, values []float32) {
	size := s.capacity * (s.dim + kernel.Pad(s.dim))
	at := s.data[(layer*s.heads+head)*size:][:size]
	return at[:s.capacity*s.dim], at[s.capacity*s.dim:]
}

// put stores key and value of one position.
func (s *segment) put(layer, head, position int, key, value []float32) {
	keys, values := s.head(layer, head)
	storeKey(keys, position, key[:s.dim])
	storeValue(values, s.capacity, position, value[:s.dim])
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

// scores writes q times the first n keys to scores[r][0:Pad(n)]. q is
// [rows][dim].
func scoreKeys(scores []float32, lds int, q []float32, dim, rows int, keys []float32, n int) {
	for p := 0; p < n; p += kernel.Width {
		kernel.Panel(kernel.Call{K: dim, Rows: rows, X: q, LDX: dim, W: keys[p*dim:],
			Init: zeroStart[:], C: scores[p:], LDC: lds})
	}
}

// addValues adds probs[r][0:n] times the first n values to out, whose rows are
// Pad(dim) wide.
func addValues(out []float32, probs []float32, lds, rows int, values []float32, capacity, dim, n int) {
	wide := kernel.Pad(dim)
	for p := 0; p < wide; p += kernel.Width {
		kernel.Panel(kernel.Call{K: n, Rows: rows, X: probs, LDX: lds, W: values[p*capacity:],
			Init: out[p:], LDInit: wide, C: out[p:], LDC: wide})
	}
}

var minusInf = float32(math.Inf(-1))

func fill(x []float32, v float32) {
	for i := range x {
		x[i] = v
	}
}
