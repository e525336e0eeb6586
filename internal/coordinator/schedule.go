package coordinator

import "math"

// Decay is the course of a learning rate after its warm-up.
type Decay string

// The courses. Linear and cosine end at 0 with the stage.
const (
	DecayConstant Decay = "constant"
	DecayLinear   Decay = "linear"
	DecayCosine   Decay = "cosine"
)

// StepsOf returns the steps that epochs passes over records take in batches of
// batch; the last one may reach into the next epoch.
func StepsOf(records, epochs, batch int) int {
	return (records*epochs + batch - 1) / batch
}

// learningRate returns the rate of update t = 0.. of the stage's total:
// base * min((t+1)/warmup, 1) * decay(progress), where progress runs from 0 at
// the end of warm-up to 1 after the last update.
func (s Stage) learningRate(t, total int) float64 {
	rate := s.LearningRate
	if s.Warmup > 0 {
		rate *= math.Min(float64(t+1)/float64(s.Warmup), 1)
	}
	rest := total - s.Warmup
	if rest <= 0 || t < s.Warmup {
		return rate
	}
	progress := float64(t-s.Warmup) / float64(rest)
	switch s.Decay {
	case DecayLinear:
		rate *= 1 - progress
	case DecayCosine:
		rate *= (1 + math.Cos(math.Pi*progress)) / 2
	}
	return rate
}
