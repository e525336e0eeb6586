package uadt

import (
	"hash/fnv"
	"math/rand/v2"
)

// placebo replaces omega among the counted traces of each group. The shuffle of
// a group depends on the seed of the run, the shaping step and the group's id,
// and on nothing else: not on its neighbours, nor on what ran before.
func (w *work) placebo() {
	kind := w.setup.Options.Placebo
	if kind == PlaceboOff {
		return
	}
	for q := range w.result.Groups {
		traces := w.result.Groups[q].Traces
		var where []int
		var omega []float64
		for i, t := range traces {
			if t.Counted {
				where = append(where, i)
				omega = append(omega, t.Omega)
			}
		}
		if kind == PlaceboMean {
			mean, _ := populationMoments(omega)
			for j := range omega {
				omega[j] = mean
			}
		} else {
			id := fnv.New64a()
			_, _ = id.Write([]byte(w.batch.Groups[q].ID)) // a hash never fails
			source := rand.NewPCG(uint64(w.setup.Seed)^id.Sum64(), uint64(w.result.Step))
			rand.New(source).Shuffle(len(omega), func(a, b int) { omega[a], omega[b] = omega[b], omega[a] })
		}
		for j, i := range where {
			traces[i].Omega = omega[j]
		}
	}
}
