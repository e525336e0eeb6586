package uadt

import "math"

// saturation is |omega| beyond which tanh no longer tells traces apart.
const saturation = 0.95

// measure fills in the metrics and the alarms.
func (w *work) measure() {
	r := &w.result
	m := r.Metrics
	m["uadt/lambda"], m["uadt/gain"], m["uadt/gamma"] = r.Lambda, r.Gain, r.Gamma
	if w.seeded {
		m["uadt/tau"], m["uadt/sigma"] = r.Tau, r.Sigma
		m["uadt/floor_active"] = indicator(w.floor)
		if r.Counted > 0 {
			m["uadt/tau_drift"] = r.Mu - r.Tau
		}
	}
	m["uadt/counted"] = float64(r.Counted)
	w.measureOmega()
	w.measureAdvantages()
	w.measureGroups()
	w.measureEntropies()
	w.measureCorrelations()
	r.Alarms = w.alarms()
}

// measureOmega describes omega over the counted traces.
func (w *work) measureOmega() {
	var omega []float64
	saturated := 0.0
	for _, g := range w.result.Groups {
		for _, t := range g.Traces {
			if t.Counted {
				omega = append(omega, t.Omega)
				saturated += indicator(math.Abs(t.Omega) > saturation)
			}
		}
	}
	if len(omega) == 0 {
		return
	}
	m := w.result.Metrics
	m["uadt/omega_mean"], m["uadt/omega_std"] = populationMoments(omega)
	m["uadt/omega_saturated"] = saturated / float64(len(omega))
}

// flipFloor is the share of the group's largest |A| up to which a value counts
// as 0 for sign_flips: a reward equal to the mean leaves a rounding error of
// either sign behind, which nobody is rewarded or punished by.
const flipFloor = 1e-12

// measureAdvantages compares A' with A. mass_moved and sign_flips are over all
// traces; common_shift and advantage/* are per scored trace of an informative
// group, so that uninformative groups do not dilute them:
// raw_pos = sum of positive A / n, raw_neg = sum of negative A / n.
func (w *work) measureAdvantages() {
	var moved, mass, flips float64
	for _, g := range w.result.Groups {
		var largest float64
		for _, t := range g.Traces {
			largest = math.Max(largest, math.Abs(t.A))
		}
		for _, t := range g.Traces {
			moved += math.Abs(t.Shaped - t.A)
			mass += math.Abs(t.A)
			least := flipFloor * largest
			flips += indicator((t.A > least && t.Shaped < -least) || (t.A < -least && t.Shaped > least))
		}
	}
	m := w.result.Metrics
	m["uadt/sign_flips"] = flips
	if mass > 0 {
		m["uadt/mass_moved"] = moved / mass
	}
	var rawPos, rawNeg, pos, neg, n float64
	w.eachTrained(func(q, i int) {
		t := w.result.Groups[q].Traces[i]
		rawPos += math.Max(t.A, 0)
		rawNeg += math.Min(t.A, 0)
		pos += math.Max(t.Shaped, 0)
		neg += math.Min(t.Shaped, 0)
		n++
	})
	if n == 0 {
		return
	}
	m["advantage/raw_pos"], m["advantage/raw_neg"] = rawPos/n, rawNeg/n
	m["advantage/shaped_pos"], m["advantage/shaped_neg"] = pos/n, neg/n
	m["uadt/common_shift"] = (pos+neg)/n - (rawPos+rawNeg)/n
}

// measureGroups counts zero-variance groups and averages the effective group
// size of A' and, for comparison, of A over informative groups.
func (w *work) measureGroups() {
	var zero float64
	var raw, shaped []float64
	for _, g := range w.result.Groups {
		zero += indicator(g.ZeroVariance)
		if !g.Informative {
			continue
		}
		before, after := make([]float64, len(g.Traces)), make([]float64, len(g.Traces))
		for i, t := range g.Traces {
			before[i], after[i] = t.A, t.Shaped
		}
		if size, ok := effectiveSize(before); ok {
			raw = append(raw, size)
		}
		if size, ok := effectiveSize(after); ok {
			shaped = append(shaped, size)
		}
	}
	m := w.result.Metrics
	m["uadt/zero_variance_groups"] = zero
	m["uadt/zero_variance_share"] = zero / float64(len(w.result.Groups))
	if len(raw) > 0 {
		m["uadt/effective_group_size_raw"], _ = populationMoments(raw)
	}
	if len(shaped) > 0 {
		m["uadt/effective_group_size"], _ = populationMoments(shaped)
	}
}

// effectiveSize returns (sum|a|)^2 / sum a^2: len(a) when all are of one size, 1
// when one carries everything. ok is false when all are 0.
func effectiveSize(a []float64) (size float64, ok bool) {
	var sum, square float64
	for _, v := range a {
		sum += math.Abs(v)
		square += v * v
	}
	if square == 0 {
		return 0, false
	}
	return sum * sum / square, true
}

// measureEntropies describes H of the counted traces, whatever uadt.level is.
// within_std is the root of the mean of the groups' population variances,
// between_std the population SD of the groups' means.
func (w *work) measureEntropies() {
	var all, right, wrong, means []float64
	var variance float64
	for q, g := range w.result.Groups {
		var own []float64
		for i, t := range g.Traces {
			if !t.Counted {
				continue
			}
			own = append(own, t.H)
			switch {
			case w.batch.Groups[q].Traces[i].Correct:
				right = append(right, t.H)
			case w.scored(q, i):
				wrong = append(wrong, t.H)
			}
		}
		if len(own) > 0 {
			mean, sd := populationMoments(own)
			means = append(means, mean)
			variance += sd * sd
			all = append(all, own...)
		}
	}
	m := w.result.Metrics
	if len(all) == 0 {
		return
	}
	low, high := math.Inf(1), math.Inf(-1)
	for _, h := range all {
		low, high = math.Min(low, h), math.Max(high, h)
	}
	m["entropy/mean"], _ = populationMoments(all)
	m["entropy/min"], m["entropy/max"] = low, high
	m["entropy/within_std"] = math.Sqrt(variance / float64(len(means)))
	_, m["entropy/between_std"] = populationMoments(means)
	if len(right) > 0 {
		m["entropy/right"], _ = populationMoments(right)
	}
	if len(wrong) > 0 {
		m["entropy/wrong"], _ = populationMoments(wrong)
	}
}

// measureCorrelations ranks H of the counted traces against length, and of the
// scored ones among them against correctness.
func (w *work) measureCorrelations() {
	var length, correct pairs
	for q, g := range w.result.Groups {
		var h, l, scoredH, c []float64
		for i, t := range g.Traces {
			if !t.Counted {
				continue
			}
			in := w.batch.Groups[q].Traces[i]
			h = append(h, t.H)
			l = append(l, float64(in.Length))
			if w.scored(q, i) {
				scoredH = append(scoredH, t.H)
				c = append(c, indicator(in.Correct))
			}
		}
		length.add(h, l)
		correct.add(scoredH, c)
	}
	length.report(w.result.Metrics, "uadt/corr_length")
	correct.report(w.result.Metrics, "uadt/corr_correct")
}

func indicator(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
