package qwenvl

import (
	"fmt"
	"math"

	"github.com/uadt-train/uadt-train/internal/qwenvl/kernel"
)

// visionEps is the RMSNorm epsilon of the vision tower and the merger: fixed in
// the published model, not a config field.
const visionEps = 1e-6

// attentionRows is how many query rows are attended at a time: enough for the
// kernel, few enough for the cache.
const attentionRows = 48

// visionScratch is the working memory of one image; it grows and is reused.
type visionScratch struct {
	x, h, qkv, gate, up   []float32
	cos, sin              []float32
	q, keys, values, key  []float32
	scores, out, attended []float32
}

// encodeImage runs the vision tower and the merger on one image. patches is
// [grid.Patches()][PatchDim] in preprocessing order; the result is
// [grid.Tokens(MergeSize)][OutHiddenSize] in reading order of merged tokens.
func (m *Model) encodeImage(s *visionScratch, patches []float32, grid Grid) ([]float32, error) {
	v := m.Config.Vision
	if err := grid.check(v.MergeSize); err != nil {
		return nil, err
	}
	n := grid.Patches()
	if len(patches) != n*v.PatchDim() {
		return nil, fmt.Errorf("%w: image has %d values, its grid %dx%dx%d asks for %d",
			ErrPrompt, len(patches), grid.T, grid.H, grid.W, n*v.PatchDim())
	}
	ld := kernel.Pad(v.HiddenSize)
	s.x, s.h = grow(s.x, n*ld), grow(s.h, n*ld)
	m.vision.patch.Mul(s.h, ld, patches, v.PatchDim(), n)

	// Reorder to window order, whole merge units at a time.
	order, windows := v.Windows(grid)
	unit := v.MergeSize * v.MergeSize
	for i, token := range order {
		copy(s.x[i*unit*ld:(i+1)*unit*ld], s.h[token*unit*ld:])
	}
	m.patchAngles(s, grid, order, unit)
	frames := FrameBounds(grid)
	for i := range m.vision.blocks {
		block := &m.vision.blocks[i]
		bounds := windows
		if block.full {
			bounds = frames
		}
		m.visionBlock(s, block, bounds, n, ld)
	}
	return m.merge(s, order, n, ld), nil
}

// patchAngles fills the rotary cosines and sines of every patch, in window
// order: the first half of the frequencies turns with the row, the second with
// the column.
func (m *Model) patchAngles(s *visionScratch, grid Grid, order []int, unit int) {
	quarter := len(m.vision.inverse)
	half := 2 * quarter
	positions := PatchPositions(grid, m.Config.Vision.MergeSize)
	s.cos, s.sin = grow(s.cos, len(positions)*half), grow(s.sin, len(positions)*half)
	for i, token := range order {
		for u := range unit {
			at := (i*unit + u) * half
			for axis, p := range positions[token*unit+u] {
				for j, f := range m.vision.inverse {
					k := at + axis*quarter + j
					s.cos[k], s.sin[k] = cosSin(p, f)
				}
			}
		}
	}
}

func (m *Model) visionBlock(s *visionScratch, b *visionBlock, bounds []int, n, ld int) {
	v := m.Config.Vision
	normRows(rows{s.h, ld}, rows{s.x, ld}, n, b.norm1, visionEps)
	ldq := b.qkv.Stride()
	s.qkv = grow(s.qkv, n*ldq)
	b.qkv.Mul(s.qkv, ldq, s.h, ld, n)
	s.attended = grow(s.attended, n*ld)
	for i := 1; i < len(bounds); i++ {
		for head := range v.Heads {
			m.attendWindow(s, head, bounds[i-1], bounds[i])
		}
	}
	s.addLinear(b.proj, s.attended, ld, n, ld)

	normRows(rows{s.h, ld}, rows{s.x, ld}, n, b.norm2, visionEps)
	ldi := b.gate.Stride()
	s.gate, s.up = grow(s.gate, n*ldi), grow(s.up, n*ldi)
	b.gate.Mul(s.gate, ldi, s.h, ld, n)
	b.up.Mul(s.up, ldi, s.h, ld, n)
	kernel.SiLUMul(s.gate, s.up)
	s.addLinear(b.down, s.gate, ldi, n, ld)
}

// addLinear adds a linear with bias to the residual stream.
func (s *visionScratch) addLinear(linear *kernel.Matrix, x []float32, ldx, n, ld int) {
	linear.Mul(s.h, ld, x, ldx, n)
	for i, y := range s.h[:n*ld] {
		s.x[i] += y
	}
}

// attendWindow lets the patches first to last-1 attend to each other in one
// head.
func (m *Model) attendWindow(s *visionScratch, head, first, last int) {
	v := m.Config.Vision
	d, n, wide := v.HeadDim(), last-first, kernel.Pad(v.HeadDim())
	half, ldq, ld := d/2, kernel.Pad(3*v.HiddenSize), kernel.Pad(v.HiddenSize)
	padded := kernel.Pad(n)
	s.q, s.keys, s.values = grow(s.q, n*d), grow(s.keys, padded*d), grow(s.values, padded*wide)
	clear(s.keys)
	clear(s.values)
	s.key = grow(s.key, d)
	for i := range n {
		row := s.qkv[(first+i)*ldq:]
		cos, sin := s.cos[(first+i)*half:(first+i+1)*half], s.sin[(first+i)*half:(first+i+1)*half]
		rotate(s.q[i*d:], row[head*d:], cos, sin)
		rotate(s.key, row[v.HiddenSize+head*d:], cos, sin)
		storeKey(s.keys, i, s.key[:d])
		storeValue(s.values, padded, i, row[2*v.HiddenSize+head*d:][:d])
	}
	scale := float32(1 / math.Sqrt(float64(d)))
	for top := 0; top < n; top += attentionRows {
		count := min(attentionRows, n-top)
		s.scores, s.out = grow(s.scores, count*padded), grow(s.out, count*wide)
		scoreKeys(rows{s.scores, padded}, rows{s.q[top*d:], d}, count, s.keys, n)
		clear(s.out)
		s.attendRows(count, n, padded, scale)
		addValues(rows{s.out, wide}, rows{s.scores, padded}, count, panels{s.values, padded}, n)
		for r := range count {
			copy(s.attended[(first+top+r)*ld+head*d:][:d], s.out[r*wide:])
		}
	}
}

// attendRows turns score rows into probabilities.
func (s *visionScratch) attendRows(count, n, padded int, scale float32) {
	for r := range count {
		row := s.scores[r*padded : (r+1)*padded]
		fill(row[n:], minusInf)
		inverse := 1 / kernel.Softmax(row, scale)
		for i := range row {
			row[i] *= inverse
		}
	}
}

// merge norms the patches, joins each merge unit into one row, projects it to
// the text width and restores reading order.
func (m *Model) merge(s *visionScratch, order []int, n, ld int) []float32 {
	v := m.Config.Vision
	unit := v.MergeSize * v.MergeSize
	tokens := n / unit
	joined := grow(s.qkv, tokens*v.MergedDim())
	for i := range n {
		rmsNorm(joined[i*v.HiddenSize:], s.x[i*ld:], m.vision.mergeNorm, visionEps)
	}
	ldm, ldo := m.vision.mergeIn.Stride(), m.vision.mergeOut.Stride()
	s.gate, s.up = grow(s.gate, tokens*ldm), grow(s.up, tokens*ldo)
	m.vision.mergeIn.Mul(s.gate, ldm, joined, v.MergedDim(), tokens)
	gelu(s.gate)
	m.vision.mergeOut.Mul(s.up, ldo, s.gate, ldm, tokens)
	features := make([]float32, tokens*v.OutHiddenSize)
	for i, token := range order {
		copy(features[token*v.OutHiddenSize:(token+1)*v.OutHiddenSize], s.up[i*ldo:])
	}
	return features
}
