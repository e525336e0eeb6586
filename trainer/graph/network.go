package graph

import (
	"fmt"
	"runtime"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/uadt-train/uadt-train/internal/matmul"
	"github.com/uadt-train/uadt-train/internal/qwenvl"
)

// value is a node of the graph with its capacity, and whether a gradient must
// flow through it.
type value struct {
	node       *gorgonia.Node
	rows, cols int
	grad       bool
}

// rowCount says how many rows of a value are live for a chunk.
type rowCount func(c *chunk) int

func tokenRows(c *chunk) int { return len(c.tokens) }
func headRows(c *chunk) int  { return len(c.head) }
func patchRows(c *chunk) int { return c.vision.patches }

// head says how logits become log-probabilities.
type head struct {
	temperature float32
	banned      []int32 // ascending
}

// lossFunc is called in the middle of a run: out holds [M][2] log-probability
// and entropy of the targets of c; it returns the chunk's share of the loss and
// fills coef, [M][2], with its derivatives.
type lossFunc func(c *chunk, out, coef []float32) (float64, error)

// network is one graph, its tape machine and the state of the run in progress.
// It belongs to one goroutine.
type network struct {
	config  qwenvl.Config
	weights *layoutOfWeights
	train   []bool // per block
	cap     sizes
	graph   *gorgonia.ExprGraph
	machine gorgonia.VM
	nodes   []*gorgonia.Node // per block
	grads   []*gorgonia.Node // per trained block, in order; nil entries for frozen ones
	out     *gorgonia.Node   // [M, 2]
	serial  int
	err     error // first error of building

	// The run in progress.
	chunk *chunk
	head  head
	loss  lossFunc
	total float64
	fail  error
	work  matmul.Workspace
}

// operation describes a fused operation to add.
type operation struct {
	name       string
	rows, cols int
	run        compute
	back       []gradient
}

// apply adds an operation on inputs to the graph.
func (n *network) apply(o operation, inputs ...value) value {
	if n.err != nil {
		return value{rows: o.rows, cols: o.cols}
	}
	n.serial++
	op := &fused{name: fmt.Sprintf("%s#%d", o.name, n.serial), arity: len(inputs), rows: o.rows, cols: o.cols, run: o.run, back: o.back, serial: &n.serial}
	op.wrt = make([]bool, len(inputs))
	nodes := make([]*gorgonia.Node, len(inputs))
	grad := false
	for i, in := range inputs {
		nodes[i] = in.node
		op.wrt[i] = in.grad
		grad = grad || in.grad
	}
	node, err := gorgonia.ApplyOp(op, nodes...)
	if err != nil {
		n.err = fmt.Errorf("build %s: %w", o.name, err)
	}
	return value{node: node, rows: o.rows, cols: o.cols, grad: grad}
}

// weight returns the node of a block.
func (n *network) weight(name string) value {
	i, ok := n.weights.index[name]
	if !ok {
		if n.err == nil {
			n.err = fmt.Errorf("build graph: no weight %q", name)
		}
		return value{rows: 1, cols: 1}
	}
	b := n.weights.blocks[i]
	return value{node: n.nodes[i], rows: b.rows, cols: b.cols, grad: n.train[i]}
}

// newNetwork builds the graph of config with capacities cap. train says which
// blocks get gradients; with none the graph is forward only.
func newNetwork(config qwenvl.Config, weights *layoutOfWeights, train []bool, cap sizes) (*network, error) {
	n := &network{config: config, weights: weights, train: train, cap: cap, graph: gorgonia.NewGraph()}
	for _, b := range weights.blocks {
		n.nodes = append(n.nodes, gorgonia.NewMatrix(n.graph, tensor.Float32, gorgonia.WithShape(b.rows, b.cols), gorgonia.WithName(b.name)))
	}
	lp := n.text(n.vision())
	if n.err != nil {
		return nil, n.err
	}
	n.out = lp.node
	if lp.grad {
		if err := n.differentiate(lp); err != nil {
			return nil, err
		}
	}
	machine := gorgonia.NewTapeMachine(n.graph)
	// Its finalizer does nothing without CUDA, but the operations refer back to n
	// and so to the machine, and a cycle with a finalizer is never collected.
	runtime.SetFinalizer(machine, nil)
	n.machine = machine
	return n, nil
}

// differentiate adds the loss and the gradients of the trained blocks.
func (n *network) differentiate(lp value) error {
	loss := n.lossOp(lp)
	one := gorgonia.NewMatrix(n.graph, tensor.Float32, gorgonia.WithShape(1, 1), gorgonia.WithName("one"),
		gorgonia.WithValue(tensor.New(tensor.WithShape(1, 1), tensor.WithBacking([]float32{1}))))
	if n.err != nil {
		return n.err
	}
	var wrt gorgonia.Nodes
	for i, node := range n.nodes {
		if n.train[i] {
			wrt = append(wrt, node)
		}
	}
	grads, err := gorgonia.Backpropagate(gorgonia.Nodes{loss.node}, gorgonia.Nodes{one}, wrt)
	if err != nil {
		return fmt.Errorf("differentiate graph: %w", err)
	}
	n.grads = make([]*gorgonia.Node, len(n.nodes))
	for i := range n.nodes {
		if n.train[i] {
			n.grads[i], grads = grads[0], grads[1:]
		}
	}
	return nil
}

// bind makes the graph read its weights from values, without copying.
func (n *network) bind(values []float32) error {
	for i, b := range n.weights.blocks {
		t := tensor.New(tensor.WithShape(b.rows, b.cols), tensor.WithBacking(n.weights.of(values, b)))
		if err := gorgonia.Let(n.nodes[i], t); err != nil {
			return fmt.Errorf("bind weight %s: %w", b.name, err)
		}
	}
	return nil
}

// run computes chunk c. With a loss, gradients are there afterwards.
func (n *network) run(c *chunk, h head, loss lossFunc) error {
	n.chunk, n.head, n.loss, n.total, n.fail = c, h, loss, 0, nil
	n.machine.Reset()
	if err := n.machine.RunAll(); err != nil {
		return fmt.Errorf("run graph: %w", err)
	}
	return n.fail
}

// addGradients adds the gradients of the last run to sum, laid out as weights.
func (n *network) addGradients(sum []float32) error {
	for i, node := range n.grads {
		if node == nil {
			continue
		}
		data, ok := node.Value().Data().([]float32)
		to := n.weights.of(sum, n.weights.blocks[i])
		if !ok || len(data) != len(to) {
			return fmt.Errorf("gradient of %s: %T of %d elements, want %d", n.weights.blocks[i].name, node.Value().Data(), len(data), len(to))
		}
		for j, v := range data {
			to[j] += v
		}
	}
	return nil
}

// logprobs copies log-probability and entropy of the last run's targets.
func (n *network) logprobs() []float32 {
	return n.out.Value().Data().([]float32)[:2*len(n.chunk.targets)]
}

// lossOp adds the loss [1, 1] of log-probabilities and entropies.
func (n *network) lossOp(lp value) value {
	coef := make([]float32, lp.rows*2)
	run := func(a [][]float32, y []float32) {
		m := 2 * len(n.chunk.targets)
		clear(coef[:m])
		n.total, n.fail = n.loss(n.chunk, a[0][:m], coef[:m])
		y[0] = float32(n.total)
	}
	back := func(a [][]float32, d []float32) {
		for i, v := range coef[:2*len(n.chunk.targets)] {
			d[i] = v * a[2][0]
		}
	}
	return n.apply(operation{name: "loss", rows: 1, cols: 1, run: run, back: []gradient{{run: back}}}, lp)
}
