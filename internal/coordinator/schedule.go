package coordinator

import "github.com/uadt-train/uadt-train/trainer"

// StepsOf returns the steps that epochs passes over records take in batches of
// batch; the last one may reach into the next epoch.
func StepsOf(records, epochs, batch int) int {
	return (records*epochs + batch - 1) / batch
}

// rate returns the learning rate of update t = 0.. of the stage's total.
func (s Stage) rate(t, total int) float64 {
	return s.schedule(total).At(t)
}

func (s Stage) schedule(total int) trainer.LearningRate {
	return trainer.LearningRate{Peak: s.LearningRate, Final: s.FinalRate, Warmup: s.Warmup, Total: total, Decay: s.Decay}
}
