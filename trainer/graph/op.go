package graph

import (
	"fmt"
	"hash"
	"hash/fnv"

	"github.com/chewxy/hm"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// compute fills out from the data of the inputs. Rows beyond the live ones of
// the current layout are left as they are and must not be read.
type compute func(in [][]float32, out []float32)

// gradient says how one input's gradient comes about: run gets the inputs of
// the forward operation, its output and the output's gradient, in that order.
type gradient struct {
	run  compute
	pass bool // the gradient is the output's gradient itself
}

// fused is a gorgonia operation on matrices that owns its output, so that a
// graph run allocates nothing of the size of its data.
type fused struct {
	name       string // unique within a graph: gorgonia tells operations apart by hash
	arity      int
	rows, cols int
	run        compute
	back       []gradient // per input; nil for gradient operations
	wrt        []bool     // per input: its gradient is wanted
	serial     *int       // names gradient operations

	out   *tensor.Dense
	views [][]float32
}

// result returns the operation's own output, made on first use.
func (f *fused) result() *tensor.Dense {
	if f.out == nil {
		f.out = tensor.New(tensor.WithShape(f.rows, f.cols), tensor.WithBacking(make([]float32, f.rows*f.cols)))
	}
	return f.out
}

// Do runs the operation. A panic (sizes that do not fit: a bug) becomes an
// error here, because the tape machine runs operations on a goroutine of its own.
func (f *fused) Do(values ...gorgonia.Value) (result gorgonia.Value, err error) {
	defer func() {
		if r := recover(); r != nil {
			result, err = nil, fmt.Errorf("%s: %v", f.name, r)
		}
	}()
	if len(values) != f.arity {
		return nil, fmt.Errorf("%s: %d inputs, want %d", f.name, len(values), f.arity)
	}
	f.views = f.views[:0]
	for i, v := range values {
		data, ok := v.Data().([]float32)
		if !ok {
			return nil, fmt.Errorf("%s: input %d holds %T, want []float32", f.name, i, v.Data())
		}
		f.views = append(f.views, data)
	}
	out := f.result()
	f.run(f.views, out.Data().([]float32))
	return out, nil
}

// SymDiff appends the operations of the wanted gradients to the graph.
func (f *fused) SymDiff(inputs gorgonia.Nodes, output, grad *gorgonia.Node) (gorgonia.Nodes, error) {
	result := make(gorgonia.Nodes, len(inputs))
	for i, want := range f.wrt {
		if !want {
			continue
		}
		if f.back[i].pass {
			result[i] = grad
			continue
		}
		*f.serial++
		shape := inputs[i].Shape()
		op := &fused{name: fmt.Sprintf("d%d/%s#%d", i, f.name, *f.serial), arity: len(inputs) + 2, rows: shape[0], cols: shape[1], run: f.back[i].run}
		node, err := gorgonia.ApplyOp(op, append(append(gorgonia.Nodes{}, inputs...), output, grad)...)
		if err != nil {
			return nil, fmt.Errorf("gradient %d of %s: %w", i, f.name, err)
		}
		result[i] = node
	}
	return result, nil
}

// DiffWRT says which inputs' gradients are wanted.
func (f *fused) DiffWRT(int) []bool {
	if f.wrt == nil {
		return make([]bool, f.arity)
	}
	return f.wrt
}

// Arity is the number of inputs.
func (f *fused) Arity() int { return f.arity }

// Type is matrix -> ... -> matrix. gorgonia recycles it, so it is made afresh.
func (f *fused) Type() hm.Type {
	types := make([]hm.Type, f.arity+1)
	for i := range types {
		types[i] = gorgonia.TensorType{Dims: 2, Of: tensor.Float32}
	}
	return hm.NewFnType(types...)
}

// InferShape is the shape of the output.
func (f *fused) InferShape(...gorgonia.DimSizer) (tensor.Shape, error) {
	return tensor.Shape{f.rows, f.cols}, nil
}

// ReturnsPtr tells gorgonia that the output is the operation's own.
func (f *fused) ReturnsPtr() bool { return true }

// CallsExtern is false: no foreign code.
func (f *fused) CallsExtern() bool { return false }

// OverwritesInput is -1: inputs are never written.
func (f *fused) OverwritesInput() int { return -1 }

// WriteHash identifies the operation.
func (f *fused) WriteHash(h hash.Hash) { fmt.Fprint(h, f.name) }

// Hashcode identifies the operation.
func (f *fused) Hashcode() uint32 {
	h := fnv.New32a()
	f.WriteHash(h)
	return h.Sum32()
}

// String names the operation.
func (f *fused) String() string { return f.name }
