package graph

import (
	"math"

	"github.com/uadt-train/uadt-train/trainer"
)

// adamw is AdamW with decoupled weight decay (Loshchilov and Hutter, 2019), as
// PyTorch computes it, on float32 master weights.
type adamw struct {
	constants trainer.Optimizer
	layout    *layoutOfWeights
	train     []bool    // per block
	updates   int       // applied so far with this state: the t of the bias corrections
	m, v      []float32 // first and second moments, laid out as the weights
}

// withDefaults fills in what is left zero.
func withDefaults(o trainer.Optimizer) trainer.Optimizer {
	if o.Beta1 == 0 {
		o.Beta1 = 0.9
	}
	if o.Beta2 == 0 {
		o.Beta2 = 0.999
	}
	if o.Epsilon == 0 {
		o.Epsilon = 1e-8
	}
	return o
}

// newAdamW makes a fresh state for the blocks of l that train.
func newAdamW(constants trainer.Optimizer, l *layoutOfWeights, train []bool) *adamw {
	return &adamw{constants: withDefaults(constants), layout: l, train: train, m: make([]float32, l.size), v: make([]float32, l.size)}
}

// apply updates the trained blocks of weights by gradient times scale.
func (o *adamw) apply(weights, gradient []float32, rate, scale float64) {
	o.updates++
	b1, b2 := float32(o.constants.Beta1), float32(o.constants.Beta2)
	step := float32(rate / (1 - math.Pow(o.constants.Beta1, float64(o.updates))))
	root := float32(math.Sqrt(1 - math.Pow(o.constants.Beta2, float64(o.updates))))
	eps := float32(o.constants.Epsilon)
	l := o.layout
	for i, b := range l.blocks {
		if !o.train[i] {
			continue
		}
		keep := float32(1)
		if b.decay {
			keep = float32(1 - rate*o.constants.WeightDecay)
		}
		w, g, m, v := l.of(weights, b), l.of(gradient, b), l.of(o.m, b), l.of(o.v, b)
		for j := range w {
			d := g[j] * float32(scale)
			m[j] += (1 - b1) * (d - m[j])
			v[j] = b2*v[j] + (1-b2)*d*d
			w[j] = w[j]*keep - step*m[j]/(float32(math.Sqrt(float64(v[j])))/root+eps)
		}
	}
}

// norm is the Euclidean norm, summed in float64 in memory order.
func norm(x []float32) float64 {
	var sum float64
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return math.Sqrt(sum)
}
