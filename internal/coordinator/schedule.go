package coordinator

import "github.com/uadt-train/uadt-train/trainer"

// rate returns the learning rate of update t = 0.. of the stage's total.
func (s Stage) rate(t, total int) float64 {
	return s.schedule(total).At(t)
}

func (s Stage) schedule(total int) trainer.LearningRate {
	return trainer.LearningRate{Peak: s.LearningRate, Final: s.FinalRate, Warmup: s.Warmup, Total: total, Decay: s.Decay}
}
