package uadt

import (
	"fmt"
	"math"
)

// work is one batch on its way through Shape; its methods are the steps.
type work struct {
	setup  Setup
	batch  Batch
	result Result
	level  [][]float64 // [Q][G] the H that u is made from: the trace's or the group's
	floor  bool        // the floor replaced tau or sigma as a denominator
	seeded bool        // there is a tau to measure against
}

// scored says that trace i of group q has a reward to learn from.
func (w *work) scored(q, i int) bool {
	return w.result.Groups[q].Traces[i].Dropped == NotDropped && !w.batch.Groups[q].Traces[i].Missing
}

// advantages fills in A and the statistics of every group.
func (w *work) advantages() error {
	o := w.setup.Advantage
	for q, g := range w.batch.Groups {
		out := &w.result.Groups[q]
		var rewards, net []float64
		var where []int
		for i, t := range g.Traces {
			if w.scored(q, i) {
				rewards = append(rewards, t.Reward)
				net = append(net, t.Reward-t.Penalty)
				where = append(where, i)
			}
		}
		out.Scored = len(rewards)
		if len(rewards) < 2 {
			continue
		}
		out.Mean, out.Std = sampleMoments(rewards)
		out.ZeroVariance = out.Std < o.MinStd
		out.Informative = !out.ZeroVariance
		if out.ZeroVariance {
			continue
		}
		a, err := Advantages(o.Advantage, o.Eps, net)
		if err != nil {
			return fmt.Errorf("group %d (%s): %w", q, g.ID, err)
		}
		for j, i := range where {
			out.Traces[i].A = a[j]
		}
	}
	return nil
}

// entropies fills in H and who is counted, then mu and SD over the counted
// traces in job order.
func (w *work) entropies() {
	include := w.setup.Options.Truncated == Include
	w.level = make([][]float64, len(w.batch.Groups))
	var counted []float64
	for q, g := range w.batch.Groups {
		var own []float64
		for i, t := range g.Traces {
			out := &w.result.Groups[q].Traces[i]
			if out.Dropped != NotDropped {
				continue
			}
			out.H, out.HasH = t.H, true
			if t.Entropies != nil {
				// check has seen that there is no error.
				out.H, out.HasH, _ = MeanEntropy(t.Entropies, t.Span)
			}
			out.Counted = out.HasH && (include || !t.Truncated)
			if out.Counted {
				own = append(own, out.H)
			}
		}
		groupMean, _ := populationMoments(own)
		w.level[q] = make([]float64, len(g.Traces))
		for i, t := range w.result.Groups[q].Traces {
			if !t.Counted {
				continue
			}
			w.level[q][i] = t.H
			if w.setup.Options.Level == LevelGroup {
				w.level[q][i] = groupMean
			}
			counted = append(counted, w.level[q][i])
		}
	}
	w.result.Counted = len(counted)
	w.result.Mu, w.result.SD = populationMoments(counted)
}

// threshold fills in the tau and sigma to use and returns the next state. A
// batch in which no trace counts leaves them as they are.
func (w *work) threshold(state State) State {
	r := &w.result
	next := state
	next.Step++
	if r.Counted > 0 {
		if !next.Seeded {
			next.Tau, next.Sigma, next.Seeded = r.Mu, r.SD, true
		}
		r.Tau, r.Sigma = next.Tau, next.Sigma
		next.Tau = r.Gamma*next.Tau + (1-r.Gamma)*r.Mu
		next.Sigma = r.Gamma*next.Sigma + (1-r.Gamma)*r.SD
		if w.setup.Options.Update == UpdateBefore {
			r.Tau, r.Sigma = next.Tau, next.Sigma
		}
	} else {
		r.Tau, r.Sigma = state.Tau, state.Sigma
	}
	r.NextTau, r.NextSigma = next.Tau, next.Sigma
	w.seeded = next.Seeded
	return next
}

// factors fills in u and omega of the counted traces.
func (w *work) factors() {
	o, r := w.setup.Options, &w.result
	denominator := 1.0
	switch o.Norm {
	case Rel:
		denominator = math.Max(r.Tau, o.Floor)
		w.floor = w.seeded && r.Tau < o.Floor
	case ZScore:
		denominator = math.Max(r.Sigma, o.Floor)
		w.floor = w.seeded && r.Sigma < o.Floor
	}
	for q := range r.Groups {
		for i := range r.Groups[q].Traces {
			t := &r.Groups[q].Traces[i]
			if t.Counted {
				t.U = (w.level[q][i] - r.Tau) / denominator
				t.Omega = math.Tanh(r.Gain * t.U)
			}
		}
	}
}

// shape returns A' of every trace under rule, re-centred and rescaled as the
// options say.
func (w *work) shape(rule Rule) [][]float64 {
	shaped := make([][]float64, len(w.batch.Groups))
	for q, g := range w.batch.Groups {
		in := RuleInput{Lambda: w.result.Lambda, Kappa: w.setup.Options.Kappa}
		for i, t := range w.result.Groups[q].Traces {
			in.A = append(in.A, t.A)
			in.Omega = append(in.Omega, t.Omega)
			in.H = append(in.H, t.H)
			in.Correct = append(in.Correct, g.Traces[i].Correct)
			in.Length = append(in.Length, g.Traces[i].Length)
		}
		shaped[q] = make([]float64, len(g.Traces))
		rule.Shape(in, shaped[q])
		if rule.ZeroSafe {
			for i := range shaped[q] {
				if !w.trained(q, i) {
					shaped[q][i] = 0
				}
			}
		}
	}
	if w.setup.Options.Recenter {
		w.recenter(shaped)
	}
	if w.setup.Options.Rescale {
		w.rescale(shaped)
	}
	return shaped
}

// trained says that trace i of group q is a scored trace of an informative
// group: the set that re-centring and the advantage metrics are over.
func (w *work) trained(q, i int) bool {
	return w.result.Groups[q].Informative && w.scored(q, i)
}

// recenter subtracts the mean over the batch's trained traces from each of
// them.
func (w *work) recenter(shaped [][]float64) {
	sum, n := 0.0, 0
	w.eachTrained(func(q, i int) { sum += shaped[q][i]; n++ })
	if n == 0 {
		return
	}
	mean := sum / float64(n)
	w.eachTrained(func(q, i int) { shaped[q][i] -= mean })
}

// rescale makes sum|A'| equal sum|A| over the batch; where sum|A'| is 0 there is
// nothing to scale.
func (w *work) rescale(shaped [][]float64) {
	var before, after float64
	for q, g := range w.result.Groups {
		for i, t := range g.Traces {
			before += math.Abs(t.A)
			after += math.Abs(shaped[q][i])
		}
	}
	if after == 0 {
		return
	}
	for q := range shaped {
		for i := range shaped[q] {
			shaped[q][i] *= before / after
		}
	}
}

// eachTrained calls visit for every trained trace in job order.
func (w *work) eachTrained(visit func(q, i int)) {
	for q, g := range w.batch.Groups {
		for i := range g.Traces {
			if w.trained(q, i) {
				visit(q, i)
			}
		}
	}
}

func (w *work) setShaped(shaped [][]float64) {
	for q := range shaped {
		for i, a := range shaped[q] {
			w.result.Groups[q].Traces[i].Shaped = a
		}
	}
}

func (w *work) setShadow(k int, shaped [][]float64) {
	for q := range shaped {
		for i, a := range shaped[q] {
			w.result.Groups[q].Traces[i].Shadow[k] = a
		}
	}
}

// finite refuses a result that overflowed on its way, naming the first trace.
func (w *work) finite() error {
	for q, g := range w.result.Groups {
		for i, t := range g.Traces {
			if !finite(t.A) || !finite(t.Shaped) || !finite(t.U) {
				return fmt.Errorf("group %d (%s) trace %d: A %v, u %v, A' %v: out of range", q, g.ID, i, t.A, t.U, t.Shaped)
			}
		}
	}
	if !finite(w.result.NextTau) || !finite(w.result.NextSigma) {
		return fmt.Errorf("tau %v, sigma %v: out of range", w.result.NextTau, w.result.NextSigma)
	}
	return nil
}
