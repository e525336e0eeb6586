package uadt

import (
	"math"
	"sort"
	"testing"

	"pgregory.net/rapid"
)

// The metrics recomputed from the result by their definitions, in two passes
// over flat rows, where the package goes group by group.

type row struct {
	group            int
	a, shaped, h     float64
	omega, length    float64
	counted, scored  bool
	correct, trained bool
}

func rowsOf(batch Batch, r Result) []row {
	var rows []row
	for q, g := range r.Groups {
		for i, x := range g.Traces {
			in := batch.Groups[q].Traces[i]
			scored := !in.Missing && !in.Aborted && in.Length > 0
			rows = append(rows, row{
				group: q, a: x.A, shaped: x.Shaped, h: x.H, omega: x.Omega, length: float64(in.Length),
				counted: x.Counted, scored: scored, correct: in.Correct, trained: scored && g.Informative,
			})
		}
	}
	return rows
}

func choose(rows []row, keep func(row) bool) []row {
	var out []row
	for _, x := range rows {
		if keep(x) {
			out = append(out, x)
		}
	}
	return out
}

func total(rows []row, value func(row) float64) float64 {
	sum := 0.0
	for _, x := range rows {
		sum += value(x)
	}
	return sum
}

func average(rows []row, value func(row) float64) float64 {
	return total(rows, value) / float64(len(rows))
}

func isCounted(x row) bool { return x.counted }
func isTrained(x row) bool { return x.trained }

// expect compares a metric with a definition whose denominator may be 0.
func expect(t *rapid.T, r Result, name string, defined bool, want float64) {
	got, ok := r.Metrics[name]
	if ok != defined {
		t.Fatalf("%s: present %v, want %v", name, ok, defined)
	}
	if defined {
		near(t, name, got, want, 1e-9)
	}
}

func TestAdvantageMetricsByDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup, first, batch := drawCase(t)
		r := shapeTwice(t, setup, first, batch)
		rows := rowsOf(batch, r)
		trained := choose(rows, isTrained)
		mass := total(rows, func(x row) float64 { return math.Abs(x.a) })
		expect(t, r, "uadt/mass_moved", mass > 0, total(rows, func(x row) float64 { return math.Abs(x.shaped - x.a) })/mass)
		some := len(trained) > 0
		expect(t, r, "uadt/common_shift", some,
			average(trained, func(x row) float64 { return x.shaped })-average(trained, func(x row) float64 { return x.a }))
		expect(t, r, "advantage/raw_pos", some, average(trained, func(x row) float64 { return math.Max(0, x.a) }))
		expect(t, r, "advantage/raw_neg", some, average(trained, func(x row) float64 { return math.Min(0, x.a) }))
		expect(t, r, "advantage/shaped_pos", some, average(trained, func(x row) float64 { return math.Max(0, x.shaped) }))
		expect(t, r, "advantage/shaped_neg", some, average(trained, func(x row) float64 { return math.Min(0, x.shaped) }))
		largest := map[int]float64{}
		for _, x := range rows {
			largest[x.group] = math.Max(largest[x.group], math.Abs(x.a))
		}
		expect(t, r, "uadt/sign_flips", true, total(rows, func(x row) float64 {
			return indicator(x.a*x.shaped < 0 && math.Min(math.Abs(x.a), math.Abs(x.shaped)) > 1e-12*largest[x.group])
		}))
	})
}

func TestOmegaMetricsByDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup, first, batch := drawCase(t)
		r := shapeTwice(t, setup, first, batch)
		counted := choose(rowsOf(batch, r), isCounted)
		some := len(counted) > 0
		mean := average(counted, func(x row) float64 { return x.omega })
		expect(t, r, "uadt/omega_mean", some, mean)
		expect(t, r, "uadt/omega_std", some, math.Sqrt(average(counted, func(x row) float64 { return (x.omega - mean) * (x.omega - mean) })))
		expect(t, r, "uadt/omega_saturated", some, average(counted, func(x row) float64 { return indicator(math.Abs(x.omega) > 0.95) }))
		expect(t, r, "uadt/counted", true, float64(len(counted)))
		expect(t, r, "uadt/lambda", true, setup.Options.Lambda.From)
		expect(t, r, "uadt/gain", true, setup.Options.Gain.From)
		expect(t, r, "uadt/gamma", true, setup.Options.Gamma.Value)
	})
}

func TestEntropyMetricsByDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup, first, batch := drawCase(t)
		r := shapeTwice(t, setup, first, batch)
		counted := choose(rowsOf(batch, r), isCounted)
		entropy := func(x row) float64 { return x.h }
		some := len(counted) > 0
		sorted := make([]float64, 0, len(counted))
		for _, x := range counted {
			sorted = append(sorted, x.h)
		}
		sort.Float64s(sorted)
		if some {
			expect(t, r, "entropy/min", true, sorted[0])
			expect(t, r, "entropy/max", true, sorted[len(sorted)-1])
		}
		expect(t, r, "entropy/mean", some, average(counted, entropy))
		right := choose(counted, func(x row) bool { return x.correct })
		wrong := choose(counted, func(x row) bool { return x.scored && !x.correct })
		expect(t, r, "entropy/right", len(right) > 0, average(right, entropy))
		expect(t, r, "entropy/wrong", len(wrong) > 0, average(wrong, entropy))
		var variances, means []float64
		for q := range batch.Groups {
			own := choose(counted, func(x row) bool { return x.group == q })
			if len(own) > 0 {
				mean := average(own, entropy)
				means = append(means, mean)
				variances = append(variances, average(own, func(x row) float64 { return x.h*x.h - mean*mean }))
			}
		}
		var within, centre, between float64
		for _, v := range variances {
			within += v / float64(len(variances))
		}
		for _, m := range means {
			centre += m / float64(len(means))
		}
		for _, m := range means {
			between += (m - centre) * (m - centre) / float64(len(means))
		}
		if some {
			// x^2 - mean^2 loses half of the digits, so compare variances.
			near(t, "within variance", math.Pow(r.Metrics["entropy/within_std"], 2), within, 1e-9)
			near(t, "between variance", math.Pow(r.Metrics["entropy/between_std"], 2), between, 1e-9)
		} else {
			absent(t, r, "entropy/within_std")
			absent(t, r, "entropy/between_std")
		}
	})
}

func TestGroupMetricsByDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup, first, batch := drawCase(t)
		r := shapeTwice(t, setup, first, batch)
		rows := rowsOf(batch, r)
		zero, informative := 0.0, 0.0
		for q, g := range r.Groups {
			own := choose(rows, func(x row) bool { return x.group == q && x.scored })
			if len(own) != g.Scored {
				t.Fatalf("group %d has %d scored, says %d", q, len(own), g.Scored)
			}
			zero += indicator(g.ZeroVariance)
			informative += indicator(g.Informative)
			if g.ZeroVariance && g.Informative || (g.Scored >= 2) != (g.ZeroVariance || g.Informative) {
				t.Fatalf("group %d: %+v", q, g)
			}
		}
		expect(t, r, "uadt/zero_variance_groups", true, zero)
		expect(t, r, "uadt/zero_variance_share", true, zero/float64(len(r.Groups)))
		size, ok := r.Metrics["uadt/effective_group_size"]
		if ok && (size < 1-1e-9 || size > 8+1e-9) {
			t.Fatalf("effective group size %v of groups of at most 8", size)
		}
		if informative == 0 && ok {
			t.Fatalf("effective group size %v without an informative group", size)
		}
	})
}

// Every correlation that is there comes with its n, at least ten, and lies in
// [-1, 1]; replacing H by an increasing function of itself within groups of one
// size leaves the one between groups' signs alone.
func TestCorrelationMetrics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup, first, batch := drawCase(t)
		for range rapid.IntRange(0, 12).Draw(t, "more") {
			batch.Groups = append(batch.Groups, rapid.Custom(drawBatch).Draw(t, "extra").Groups...)
		}
		r := shapeTwice(t, setup, first, batch)
		for _, name := range []string{"corr_length_within", "corr_length_between", "corr_correct_within", "corr_correct_between"} {
			rho, ok := r.Metrics["uadt/"+name]
			n, counted := r.Metrics["uadt/"+name+"_n"]
			if ok != counted || (ok && (n < minPairs || math.Abs(rho) > 1)) {
				t.Fatalf("%s = %v (%v) with n %v (%v)", name, rho, ok, n, counted)
			}
			if ok && n > float64(r.Counted) {
				t.Fatalf("%s has n %v of %d counted traces", name, n, r.Counted)
			}
		}
	})
}
