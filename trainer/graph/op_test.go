package graph

import (
	"math"
	"math/rand/v2"
	"testing"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/trainer"
)

// rig is a network without a model, to try single operations on.
func rig(t *testing.T, c *chunk) *network {
	t.Helper()
	return &network{graph: gorgonia.NewGraph(), chunk: c, head: head{temperature: 1}, weights: &layoutOfWeights{index: map[string]int{}}}
}

// input adds an input matrix.
func (n *network) input(t *testing.T, data []float32, rows, cols int) value {
	t.Helper()
	node := gorgonia.NewMatrix(n.graph, tensor.Float32, gorgonia.WithShape(rows, cols), gorgonia.WithName(t.Name()+string(rune('a'+n.serial))),
		gorgonia.WithValue(tensor.New(tensor.WithShape(rows, cols), tensor.WithBacking(data))))
	n.serial++
	return value{node: node, rows: rows, cols: cols, grad: true}
}

// checkOp compares the gradients of an operation's inputs with central
// differences of a fixed linear form of its output, element by element.
func checkOp(t *testing.T, n *network, y value, inputs []value, live int) {
	t.Helper()
	if n.err != nil {
		t.Fatal(n.err)
	}
	r := rand.New(rand.NewPCG(8, 8))
	form := make([]float32, y.rows*y.cols)
	for i := range live {
		form[i] = float32(r.NormFloat64())
	}
	grad := n.input(t, form, y.rows, y.cols)
	var nodes gorgonia.Nodes
	for _, in := range inputs {
		nodes = append(nodes, in.node)
	}
	grads, err := gorgonia.Backpropagate(gorgonia.Nodes{y.node}, gorgonia.Nodes{grad.node}, nodes)
	if err != nil {
		t.Fatal(err)
	}
	machine := gorgonia.NewTapeMachine(n.graph)
	run := func() float64 {
		machine.Reset()
		if err := machine.RunAll(); err != nil {
			t.Fatal(err)
		}
		total := 0.0
		for i, v := range y.node.Value().Data().([]float32)[:live] {
			total += float64(v) * float64(form[i])
		}
		return total
	}
	run()
	for k, in := range inputs {
		want := append([]float32(nil), grads[k].Value().Data().([]float32)...)
		data := in.node.Value().Data().([]float32)
		for i := range data {
			const step = 1e-2
			was := data[i]
			data[i] = was + step
			up := run()
			data[i] = was - step
			down := run()
			data[i] = was
			if got := (up - down) / (2 * step); math.Abs(got-float64(want[i])) > 4e-3*(1+math.Abs(got)) {
				t.Errorf("input %d element %d: finite difference %.5f, gradient %.5f", k, i, got, want[i])
			}
		}
	}
}

func normal(n int, seed uint64) []float32 {
	r := rand.New(rand.NewPCG(seed, 2))
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(r.NormFloat64())
	}
	return out
}

// tokens is a chunk of n token rows without structure.
func tokens(n int) *chunk { return &chunk{tokens: make([]int32, n)} }

func TestSwiGLUGradient(t *testing.T) {
	n := rig(t, tokens(3))
	x := n.input(t, normal(3*10, 1), 3, 10)
	checkOp(t, n, n.swiglu("swiglu", x, tokenRows), []value{x}, 3*5)
}

func TestGELUGradient(t *testing.T) {
	n := rig(t, tokens(3))
	x := n.input(t, normal(3*5, 2), 3, 5)
	checkOp(t, n, n.gelu("gelu", x, tokenRows), []value{x}, 15)
}

// withWeight registers an input as a weight.
func (n *network) withWeight(name string, v value) {
	n.weights.index[name] = len(n.weights.blocks)
	n.weights.blocks = append(n.weights.blocks, block{name: name, rows: v.rows, cols: v.cols})
	n.nodes, n.train = append(n.nodes, v.node), append(n.train, true)
}

func TestNormGradient(t *testing.T) {
	n := rig(t, tokens(3))
	x, w := n.input(t, normal(4*6, 3), 4, 6), n.input(t, normal(6, 4), 1, 6)
	n.withWeight("w", w)
	checkOp(t, n, n.norm("w", x, 1e-6, tokenRows), []value{w}, 3*6)
	m := rig(t, tokens(4))
	x, w = m.input(t, normal(4*6, 3), 4, 6), m.input(t, normal(6, 4), 1, 6)
	m.withWeight("w", w)
	checkOp(t, m, m.norm("w", x, 1e-6, tokenRows), []value{x, w}, 4*6)
}

func TestLinearGradient(t *testing.T) {
	n := rig(t, tokens(4))
	x, w, b, r := n.input(t, normal(4*3, 5), 4, 3), n.input(t, normal(2*3, 6), 2, 3), n.input(t, normal(2, 7), 1, 2), n.input(t, normal(4*2, 8), 4, 2)
	n.withWeight("w", w)
	n.withWeight("b", b)
	y := n.linear(linear{name: "linear", w: "w", bias: "b", rows: tokenRows, x: &x, residual: &r, capacity: 4})
	checkOp(t, n, y, []value{x, w, b, r}, 4*2)
}

func TestPatchEmbeddingGradient(t *testing.T) {
	c := &chunk{vision: visionRows{pixels: [][]float32{normal(2*3, 9), normal(3*3, 10)}, patches: 5}}
	n := rig(t, c)
	w := n.input(t, normal(4*3, 11), 4, 3)
	n.withWeight("w", w)
	checkOp(t, n, n.linear(linear{name: "patches", w: "w", rows: patchRows, pixels: true, capacity: 6}), []value{w}, 5*4)
}

func TestCrossEntropyGradient(t *testing.T) {
	for _, banned := range [][]int32{nil, {1, 5}} {
		c := &chunk{head: make([]int32, 3), targets: []target{{0, 2}, {0, 4}, {2, 0}, {1, 3}}}
		n := rig(t, c)
		n.head = head{temperature: 0.7, banned: banned}
		n.cap.targets = 5
		x := n.input(t, normal(3*6, 12), 3, 6)
		checkOp(t, n, n.crossEntropy(x), []value{x}, 4*2)
	}
}

// TestEntropyOfKnownLogits compares with the worked number.
func TestEntropyOfKnownLogits(t *testing.T) {
	e := make([]float32, 4)
	s := softmaxRow(e, []float32{2, 1, 0, -1}, 1, nil)
	if math.Abs(float64(s.entropy)-0.947536964) > 1e-6 {
		t.Errorf("entropy %v, want 0.947536964", s.entropy)
	}
	far := softmaxRow(e, []float32{1e4, -1e4, 0, 5}, 1, nil)
	if far.entropy != 0 || far.lse != 1e4 {
		t.Errorf("peaked logits: entropy %v, log-sum-exp %v, want 0 and 10000", far.entropy, far.lse)
	}
	without := softmaxRow(e, []float32{2, 1e30, 1, 0}, 1, []int32{1})
	if e[1] != 0 || math.Abs(float64(without.lse)-2.40760596) > 1e-5 {
		t.Errorf("banned id: weight %v, log-sum-exp %v, want 0 and 2.40760596", e[1], without.lse)
	}
	if bad := softmaxRow(e, []float32{0, float32(math.NaN()), 1, 2}, 1, nil); finite(float64(bad.lse)) {
		t.Errorf("NaN logit: log-sum-exp %v", bad.lse)
	}
}

// TestSoftmaxProperties checks shift invariance and bounds of the entropy.
func TestSoftmaxProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		z := rapid.SliceOfN(rapid.Float32Range(-20, 20), 2, 70).Draw(t, "z")
		shift := rapid.Float32Range(-50, 50).Draw(t, "shift")
		e, other, moved := make([]float32, len(z)), make([]float32, len(z)), make([]float32, len(z))
		for i, v := range z {
			moved[i] = v + shift
		}
		a, b := softmaxRow(e, z, 1, nil), softmaxRow(other, moved, 1, nil)
		if d := math.Abs(float64(b.lse - a.lse - shift)); d > 1e-4 {
			t.Errorf("log-sum-exp moved by %v too much", d)
		}
		if d := math.Abs(float64(a.entropy - b.entropy)); d > 1e-3 {
			t.Errorf("entropy moved by %v", d)
		}
		if h := float64(a.entropy); h < 0 || h > math.Log(float64(len(z)))+1e-4 {
			t.Errorf("entropy %v of %d ids", h, len(z))
		}
		total := 0.0
		for _, v := range e {
			total += float64(v * a.scale)
		}
		if math.Abs(total-1) > 1e-5 {
			t.Errorf("probabilities sum to %v", total)
		}
	})
}

// TestRotationIsUndone checks that unrotate is the transpose, and so the
// inverse, of rotate.
func TestRotationIsUndone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		half := rapid.IntRange(1, 8).Draw(t, "half")
		x := rapid.SliceOfN(rapid.Float32Range(-3, 3), 2*half, 2*half).Draw(t, "x")
		angle := rapid.SliceOfN(rapid.Float64Range(-10, 10), half, half).Draw(t, "angle")
		cos, sin := make([]float32, half), make([]float32, half)
		for i, a := range angle {
			cos[i], sin[i] = float32(math.Cos(a)), float32(math.Sin(a))
		}
		turned, back := make([]float32, 2*half), make([]float32, 2*half)
		rotate(turned, x, cos, sin, 0.5)
		unrotate(back, turned, cos, sin, 2)
		for i := range x {
			if math.Abs(float64(back[i]-x[i])) > 1e-5 {
				t.Fatalf("element %d: %v came back as %v", i, x[i], back[i])
			}
		}
	})
}

// TestExpSub compares the vector exponential with float64, at every length of
// the rest.
func TestExpSub(t *testing.T) {
	for n := range 50 {
		x, y := normal(n, uint64(n)), make([]float32, n)
		for i := range x {
			x[i] *= 20
		}
		expSub(y, x, 0.5, 3)
		for i, v := range x {
			want := math.Exp(float64(v)*0.5 - 3)
			if math.Abs(float64(y[i])-want) > 1e-5*want {
				t.Errorf("%d of %d: exp of %v is %v, want %v", i, n, v*0.5-3, y[i], want)
			}
		}
	}
}

// TestNormalDistribution compares with the error function.
func TestNormalDistribution(t *testing.T) {
	var x []float32
	for v := float32(-7); v <= 7; v += 0.01 {
		x = append(x, v)
	}
	phi, bell := make([]float32, len(x)), make([]float32, len(x))
	normalDistribution(phi, bell, x)
	for i, v := range x {
		if want := math.Erfc(-float64(v)/math.Sqrt2) / 2; math.Abs(float64(phi[i])-want) > 2.5e-7 {
			t.Errorf("Phi(%v) is %v, want %v", v, phi[i], want)
		}
	}
}

// TestAdamWAgainstDefinition compares with the published recursion in float64.
func TestAdamWAgainstDefinition(t *testing.T) {
	l := &layoutOfWeights{blocks: []block{{name: "w", rows: 1, cols: 5, decay: true}, {name: "b", rows: 1, cols: 5, offset: 5}, {name: "frozen", rows: 1, cols: 2, offset: 10}}, size: 12}
	train := []bool{true, true, false}
	w := normal(12, 1)
	want := make([]float64, 12)
	for i, v := range w {
		want[i] = float64(v)
	}
	const rate, scale, b1, b2, eps, decay = 0.01, 0.7, 0.9, 0.999, 1e-8, 0.1
	o := newAdamW(trainer.Optimizer{WeightDecay: decay}, l, train)
	m, v := make([]float64, 12), make([]float64, 12)
	for step := 1; step <= 20; step++ {
		g := normal(12, uint64(100+step))
		o.apply(w, g, rate, scale)
		for i := range 10 {
			d := float64(g[i]) * scale
			m[i], v[i] = b1*m[i]+(1-b1)*d, b2*v[i]+(1-b2)*d*d
			if i < 5 {
				want[i] *= 1 - rate*decay
			}
			want[i] -= rate * m[i] / (1 - math.Pow(b1, float64(step))) / (math.Sqrt(v[i]/(1-math.Pow(b2, float64(step)))) + eps)
		}
	}
	for i := range w {
		if math.Abs(float64(w[i])-want[i]) > 2e-6 {
			t.Errorf("weight %d is %v, want %v", i, w[i], want[i])
		}
	}
}
