package kernel

import "math"

// Softmax replaces x, whose length is a multiple of Width, by the unnormalised
// softmax exp(scale*x - max(scale*x)) and returns the sum of what it wrote.
// scale is positive. Entries of -Inf become 0; if all are, so is the sum.
//
// The sum is taken in 16 lanes (lane i adds x[i], x[i+16], ...) that are then
// folded in halves, so its bits depend on the values and their places only.
func Softmax(x []float32, scale float32) (sum float32) {
	if len(x) == 0 {
		return 0
	}
	_ = x[:len(x)&^(Width-1)]
	return softmax(x, scale)
}

func softmaxGo(x []float32, scale float32) float32 {
	top := float32(math.Inf(-1))
	for _, v := range x {
		if v > top {
			top = v
		}
	}
	shift := top * scale
	if math.IsInf(float64(shift), 0) {
		shift = 0
	}
	var lanes [Width]float32
	for i, v := range x {
		x[i] = exp32(float32(v*scale) - shift)
		lanes[i%Width] += x[i]
	}
	for half := Width / 2; half > 0; half /= 2 {
		for i := range half {
			lanes[i] += lanes[i+half]
		}
	}
	return lanes[0]
}
