package graph

// rotate sets to = scale * R from for one head vector, R the rotary rotation
// with the tables cos and sin of half its length: the pair (i, i+half) turns by
// angle i, as transformers' rotate_half does.
func rotate(to, from, cos, sin []float32, scale float32) {
	half := len(cos)
	from, to, sin = from[:2*half], to[:2*half], sin[:half]
	for i, c := range cos {
		a, b := from[i], from[half+i]
		to[i] = (a*c - b*sin[i]) * scale
		to[half+i] = (b*c + a*sin[i]) * scale
	}
}

// unrotate sets to = scale * R^T from, the gradient of rotate.
func unrotate(to, from, cos, sin []float32, scale float32) {
	half := len(cos)
	from, to, sin = from[:2*half], to[:2*half], sin[:half]
	for i, c := range cos {
		a, b := from[i], from[half+i]
		to[i] = (a*c + b*sin[i]) * scale
		to[half+i] = (b*c - a*sin[i]) * scale
	}
}
