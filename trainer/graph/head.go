package graph

import "math"

// crossEntropy adds [M, 2]: log-probability of each target and the exact
// entropy of its distribution, both of softmax(logits / temperature) without
// the banned ids, in nats.
func (n *network) crossEntropy(logits value) value {
	vocab := logits.cols
	probs := make([]float32, logits.rows*vocab) // softmax, kept for the gradient
	lse := make([]float32, logits.rows)         // log-sum-exp of the scaled logits
	entropy := make([]float32, logits.rows)
	run := func(a [][]float32, y []float32) {
		inv := 1 / n.head.temperature
		banned := n.bannedMask(vocab)
		for r := range n.chunk.head {
			lse[r], entropy[r] = softmaxRow(probs[r*vocab:(r+1)*vocab], a[0][r*vocab:(r+1)*vocab], inv, banned)
		}
		for i, t := range n.chunk.targets {
			// z - lse, not log(p): p may underflow.
			y[2*i] = a[0][int(t.row)*vocab+int(t.id)]*inv - lse[t.row]
			y[2*i+1] = entropy[t.row]
		}
	}
	// With z the scaled logits, d lp_y / dz_v = [v = y] - p_v and
	// d H / dz_v = -p_v (log p_v + H).
	back := func(a [][]float32, dx []float32) {
		inv := 1 / n.head.temperature
		dy := a[2]
		live := len(n.chunk.head) * vocab
		clear(dx[:live])
		sumLP := make([]float32, len(n.chunk.head))
		sumH := make([]float32, len(n.chunk.head))
		for i, t := range n.chunk.targets {
			sumLP[t.row] += dy[2*i]
			sumH[t.row] += dy[2*i+1]
			dx[int(t.row)*vocab+int(t.id)] += dy[2*i] * inv
		}
		for r := range n.chunk.head {
			p, z, d := probs[r*vocab:(r+1)*vocab], a[0][r*vocab:(r+1)*vocab], dx[r*vocab:(r+1)*vocab]
			if sumH[r] == 0 {
				k := sumLP[r] * inv
				for v, q := range p {
					d[v] -= q * k
				}
				continue
			}
			shift := entropy[r] - lse[r]
			for v, q := range p {
				if q > 0 { // a banned id has no part in the entropy
					d[v] -= q * inv * (sumLP[r] + sumH[r]*(z[v]*inv+shift))
				}
			}
		}
	}
	return n.apply(operation{name: "cross_entropy", rows: n.cap.targets, cols: 2, run: run, back: []gradient{{run: back}}}, logits)
}

// bannedMask returns the ids left out of the softmax, or nil for none.
func (n *network) bannedMask(vocab int) []bool {
	if len(n.head.banned) == 0 {
		return nil
	}
	mask := make([]bool, vocab)
	for _, id := range n.head.banned {
		if id >= 0 && int(id) < vocab {
			mask[id] = true
		}
	}
	return mask
}

// softmaxRow sets p to softmax(z*inv) without the banned ids, and returns the
// log-sum-exp and the entropy. The largest logit is taken out first, so that
// nothing overflows; with d = z*inv - top <= 0 the entropy is
// log(sum e^d) - sum(e^d d)/sum(e^d), two non-negative terms, so nothing
// cancels.
func softmaxRow(p, z []float32, inv float32, banned []bool) (lse, entropy float32) {
	top := float32(-math.MaxFloat32)
	for v, x := range z {
		if banned == nil || !banned[v] {
			top = max(top, x*inv) // max of NaN is NaN, which reaches the loss and refuses the step
		}
	}
	var sum, weighted float64
	for v, x := range z {
		if banned != nil && banned[v] {
			p[v] = 0
			continue
		}
		d := x*inv - top
		e := exp32(d)
		p[v] = e
		sum += float64(e)
		weighted += float64(e * d)
	}
	scale := float32(1 / sum)
	for v := range p {
		p[v] *= scale
	}
	log := math.Log(sum)
	return top + float32(log), float32(log - weighted/sum)
}
