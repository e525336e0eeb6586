package graph

import (
	"fmt"
	"strings"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/trainer"
)

// block is one weight of the graph: a matrix [rows, cols] (a vector is one
// row) made of one checkpoint tensor, or of several stacked ones that the graph
// multiplies together (query, key and value; gate and up).
type block struct {
	name       string
	rows, cols int
	offset     int // into params.values
	part       qwenvl.Part
	decay      bool // weight decay applies: not to biases and norm weights
}

// size is the number of elements.
func (b block) size() int { return b.rows * b.cols }

// entry places one checkpoint tensor.
type entry struct {
	spec   qwenvl.TensorSpec
	offset int
}

// layoutOfWeights is where every tensor of a model stands in one flat vector.
type layoutOfWeights struct {
	blocks  []block
	index   map[string]int // block name -> index
	entries []entry        // in checkpoint order
	size    int
}

// stacks names, by suffix, the tensors that follow each other in memory.
var stacks = map[string]string{
	"self_attn.q_proj.": "self_attn.qkv.", "self_attn.k_proj.": "self_attn.qkv.", "self_attn.v_proj.": "self_attn.qkv.",
	"mlp.gate_proj.": "mlp.gate_up.", "mlp.up_proj.": "mlp.gate_up.",
}

// blockName is the name of the block that a tensor is part of.
func blockName(tensor string) string {
	for member, whole := range stacks {
		if strings.Contains(tensor, member) {
			return strings.Replace(tensor, member, whole, 1)
		}
	}
	return tensor
}

// arrange lays out the weights of config.
func arrange(config qwenvl.Config) *layoutOfWeights {
	l := &layoutOfWeights{index: map[string]int{}}
	specs := config.Tensors()
	members := map[string][]int{}
	for i, s := range specs {
		name := blockName(s.Name)
		if _, ok := l.index[name]; !ok {
			l.index[name] = len(l.blocks)
			l.blocks = append(l.blocks, block{name: name, part: s.Part, decay: len(s.Shape) > 1})
		}
		members[name] = append(members[name], i)
	}
	l.entries = make([]entry, len(specs))
	for i := range l.blocks {
		b := &l.blocks[i]
		b.offset = l.size
		for _, m := range members[b.name] {
			rows, cols := flatShape(specs[m].Shape)
			if rows == 1 { // vectors stack end to end
				b.rows, b.cols = 1, b.cols+cols
			} else {
				b.rows, b.cols = b.rows+rows, cols
			}
			l.entries[m] = entry{spec: specs[m], offset: l.size}
			l.size += rows * cols
		}
		l.size = (l.size + 15) &^ 15 // blocks start at cache lines
	}
	return l
}

// flatShape views a tensor as a matrix: a vector as one row, a convolution
// kernel as [out, everything else].
func flatShape(shape []int) (rows, cols int) {
	if len(shape) == 1 {
		return 1, shape[0]
	}
	cols = 1
	for _, d := range shape[1:] {
		cols *= d
	}
	return shape[0], cols
}

// of returns the elements of block b in a vector laid out by l.
func (l *layoutOfWeights) of(values []float32, b block) []float32 {
	return values[b.offset : b.offset+b.size() : b.offset+b.size()]
}

// read fills a fresh vector from a checkpoint, which must hold every tensor in
// its shape.
func (l *layoutOfWeights) read(model *checkpoint.Model) ([]float32, error) {
	names := map[string]string{}
	for _, name := range model.Names() {
		names[qwenvl.CanonicalName(name)] = name
	}
	values := make([]float32, l.size)
	for _, e := range l.entries {
		name, ok := names[e.spec.Name]
		if !ok {
			name = e.spec.Name // let the checkpoint say that it is missing
		}
		data, err := model.Float32(name, e.spec.Shape...)
		if err != nil {
			return nil, fmt.Errorf("read weights: %w", err)
		}
		for i, v := range data {
			if !finite(float64(v)) {
				return nil, fmt.Errorf("read weights: %w", &checkpoint.TensorError{Dir: model.Dir(), Name: name, Err: fmt.Errorf("element %d is %v", i, v)})
			}
		}
		copy(values[e.offset:], data)
	}
	return values, nil
}

// tensors views a vector as checkpoint tensors. They alias values.
func (l *layoutOfWeights) tensors(values []float32) map[string]safetensors.Tensor {
	out := make(map[string]safetensors.Tensor, len(l.entries))
	for _, e := range l.entries {
		rows, cols := flatShape(e.spec.Shape)
		out[e.spec.Name] = safetensors.FromFloat32(values[e.offset:e.offset+rows*cols], e.spec.Shape...)
	}
	return out
}

// trainable says which blocks train when parts are frozen.
func (l *layoutOfWeights) trainable(frozen []trainer.ModelPart) ([]bool, error) {
	off := map[qwenvl.Part]bool{}
	for _, part := range frozen {
		switch part {
		case trainer.Vision:
			off[qwenvl.PartVision] = true
		case trainer.Projector:
			off[qwenvl.PartMerger] = true
		case trainer.Language:
			off[qwenvl.PartText], off[qwenvl.PartHead] = true, true
		default:
			return nil, fmt.Errorf("frozen part %q is none of %q, %q, %q", part, trainer.Vision, trainer.Projector, trainer.Language)
		}
	}
	out := make([]bool, len(l.blocks))
	for i, b := range l.blocks {
		out[i] = !off[b.part]
	}
	return out, nil
}
