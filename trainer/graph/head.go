package graph

import "math"

// crossEntropy adds [M, 2]: log-probability of each target and the exact
// entropy of its distribution, both of softmax(logits / temperature) without
// the banned ids, in nats.
func (n *network) crossEntropy(logits value) value {
	vocab := logits.cols
	exps := make([]float32, logits.rows*vocab) // exp(z - max z), kept for the gradient
	rows := make([]softmaxed, logits.rows)
	run := func(a [][]float32, y []float32) {
		inv := 1 / n.head.temperature
		for r := range n.chunk.head {
			rows[r] = softmaxRow(exps[r*vocab:(r+1)*vocab], a[0][r*vocab:(r+1)*vocab], inv, n.head.banned)
		}
		for i, t := range n.chunk.targets {
			// z - lse, not log(p): p may underflow.
			y[2*i] = a[0][int(t.row)*vocab+int(t.id)]*inv - rows[t.row].lse
			y[2*i+1] = rows[t.row].entropy
		}
	}
	// With z the scaled logits, d lp_y / dz_v = [v = y] - p_v and
	// d H / dz_v = -p_v (log p_v + H).
	back := func(a [][]float32, dx []float32) {
		inv := 1 / n.head.temperature
		dy := a[2]
		sums := make([][2]float32, len(n.chunk.head)) // of the derivatives of a row's targets
		for i, t := range n.chunk.targets {
			sums[t.row][0] += dy[2*i]
			sums[t.row][1] += dy[2*i+1]
		}
		for r, s := range sums {
			e, z, d := exps[r*vocab:(r+1)*vocab], a[0][r*vocab:(r+1)*vocab], dx[r*vocab:(r+1)*vocab]
			scale := -inv * rows[r].scale
			if s[1] == 0 {
				k := s[0] * scale
				for v, q := range e {
					d[v] = q * k
				}
				continue
			}
			shift := s[0] + s[1]*(rows[r].entropy-rows[r].lse)
			slope := s[1] * inv
			for v, q := range e {
				d[v] = 0
				if q > 0 { // a banned id has no part in the entropy
					d[v] = q * scale * (shift + slope*z[v])
				}
			}
		}
		for i, t := range n.chunk.targets {
			dx[int(t.row)*vocab+int(t.id)] += dy[2*i] * inv
		}
	}
	return n.apply(operation{name: "cross_entropy", rows: n.cap.targets, cols: 2, run: run, back: []gradient{{run: back}}}, logits)
}

// softmaxed is what a row's gradient and targets need to know of it.
type softmaxed struct {
	lse     float32 // log-sum-exp of the scaled logits
	scale   float32 // 1 / sum of the exponentials
	entropy float32
}

// softmaxRow sets e to exp(z*inv - top), 0 for banned ids. top, the largest
// scaled logit that is not banned, is taken out so that nothing overflows. With
// d = z*inv - top <= 0 the entropy is log(sum e^d) - sum(e^d d)/sum(e^d), two
// non-negative terms, so nothing cancels.
func softmaxRow(e, z []float32, inv float32, banned []int32) softmaxed {
	from, top := 0, float32(-math.MaxFloat32)
	for _, id := range banned { // ascending
		top = largest(z[from:id], top)
		from = int(id) + 1
	}
	top = largest(z[from:], top) * inv
	expSub(e, z, inv, top)
	for _, id := range banned {
		e[id] = 0
	}
	var s0, s1, w0, w1 float64 // two chains each
	i := 0
	for ; i+2 <= len(e); i += 2 {
		a, b := e[i], e[i+1]
		s0 += float64(a)
		s1 += float64(b)
		w0 += float64(a * (z[i]*inv - top))
		w1 += float64(b * (z[i+1]*inv - top))
	}
	for ; i < len(e); i++ {
		s0 += float64(e[i])
		w0 += float64(e[i] * (z[i]*inv - top))
	}
	sum := s0 + s1
	log := math.Log(sum)
	return softmaxed{lse: top + float32(log), scale: float32(1 / sum), entropy: float32(log - (w0+w1)/sum)}
}
