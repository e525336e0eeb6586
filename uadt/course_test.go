package uadt

import (
	"math"
	"testing"
)

// Courses of a whole stage: how tau, omega and the controls behave over time.

// run shapes one batch a step, its entropies given by h.
func run(t tb, s *Shaper, steps int, h func(step, i int) float64) []Result {
	t.Helper()
	var out []Result
	for step := range steps {
		g := Group{ID: "q"}
		for i := range 4 {
			g.Traces = append(g.Traces, Trace{Reward: float64(i % 2), Correct: i%2 == 1, Length: 8, H: h(step, i)})
		}
		out = append(out, shape(t, s, batchOf(g)))
	}
	return out
}

// tau is the exponential average in closed form:
// tau_s = gamma^s mu_0 + (1-gamma) sum_k gamma^(s-1-k) mu_k.
func TestTauInClosedForm(t *testing.T) {
	const gamma = 0.8
	mu := func(step int) float64 { return 0.5 + 0.3*math.Sin(float64(step)) }
	results := run(t, shaper(t, func(s *Setup) { s.Options.Gamma = Gamma{Value: gamma} }), 20,
		func(step, _ int) float64 { return mu(step) })
	for s, r := range results {
		want := math.Pow(gamma, float64(s)) * mu(0)
		for k := range s {
			want += (1 - gamma) * math.Pow(gamma, float64(s-1-k)) * mu(k)
		}
		near(t, "tau", r.Tau, want, 1e-12)
		near(t, "mu", r.Mu, mu(s), 1e-12)
	}
}

// gamma 0 follows the last batch, gamma 1 stays with the first.
func TestExtremesOfGamma(t *testing.T) {
	h := func(step, _ int) float64 { return 1 + float64(step) }
	for s, r := range run(t, shaper(t, func(s *Setup) { s.Options.Gamma = Gamma{} }), 6, h) {
		near(t, "tau at gamma 0", r.Tau, math.Max(1, float64(s)), 1e-12)
	}
	for _, r := range run(t, shaper(t, func(s *Setup) { s.Options.Gamma = Gamma{Value: 1} }), 6, h) {
		near(t, "tau at gamma 1", r.Tau, 1, 1e-12)
	}
}

// A half-life as a share of the stage: after it a jump is half absorbed.
func TestHalfLifeOverAStage(t *testing.T) {
	s := shaper(t, func(s *Setup) { s.StageSteps = 50 }) // half-life 5 steps
	results := run(t, s, 7, func(step, _ int) float64 {
		if step == 0 {
			return 1
		}
		return 3
	})
	near(t, "tau five steps after the jump", results[6].Tau, 2, 1e-12)
}

// At a steady entropy tau settles and omega has mean near 0, whatever the norm.
func TestSteadyState(t *testing.T) {
	for _, norm := range []Norm{Diff, Rel, ZScore} {
		results := run(t, shaper(t, func(s *Setup) { s.Options.Norm = norm }), 60,
			func(_, i int) float64 { return 0.5 + 0.02*float64(i) })
		last := results[len(results)-1]
		near(t, string(norm)+" tau", last.Tau, 0.53, 1e-9)
		near(t, string(norm)+" mean omega", last.Metrics["uadt/omega_mean"], 0, 1e-9)
		near(t, string(norm)+" drift", last.Metrics["uadt/tau_drift"], 0, 1e-9)
	}
}

// When entropy collapses to 0 nothing divides by 0 and the floor says so.
func TestEntropyCollapse(t *testing.T) {
	for _, norm := range []Norm{Diff, Rel, ZScore} {
		results := run(t, shaper(t, func(s *Setup) { s.Options.Norm, s.Options.Gamma = norm, Gamma{Value: 0.5} }), 40,
			func(step, _ int) float64 { return math.Pow(0.5, float64(step)) })
		last := results[len(results)-1]
		for _, x := range append(everything(last, pickOmega), everything(last, pickShaped)...) {
			if !finite(x) {
				t.Fatalf("%s: %v", norm, x)
			}
		}
		want := 1.0
		if norm == Diff {
			want = 0
		}
		metric(t, last, "uadt/floor_active", want)
		near(t, "u at the end", last.Groups[0].Traces[0].U, 0, 1e-3)
	}
}

// The documented ranges of u and omega at k = 1 are reached and not passed.
func TestDocumentedRanges(t *testing.T) {
	const tau = 0.6
	for _, c := range []struct {
		norm      Norm
		low, high float64 // of omega
	}{{Diff, -math.Tanh(tau), 1}, {Rel, math.Tanh(-1), 1}} {
		s := diffShaper(t, "c1", tau, func(s *Setup) { s.Options.Norm = c.norm })
		r := shape(t, s, batchOf(group("q", []float64{1, 0, 1}, []float64{0, tau, 60})))
		nears(t, string(c.norm), column(r, 0, pickOmega), []float64{c.low, 0, c.high}, 1e-12)
	}
	near(t, "the number of the documentation", math.Tanh(-1), -0.762, 5e-4)
}

// A scheduled lambda that reaches 0 turns c1 into none.
func TestLambdaScheduledAway(t *testing.T) {
	s := shaper(t, func(s *Setup) {
		s.Options.Lambda = Schedule{Shape: ShapeCosine, From: 0.5, To: 0, Over: Extent{Share: 0.5}}
		s.StageSteps = 20
	})
	results := run(t, s, 20, func(step, i int) float64 { return 0.3 + 0.1*float64((step+i)%3) })
	moved := func(r Result) float64 { return r.Metrics["uadt/mass_moved"] }
	if moved(results[0]) == 0 {
		t.Errorf("nothing was moved at the start")
	}
	for s, r := range results[10:] {
		near(t, "lambda", r.Lambda, 0, 1e-15)
		near(t, "mass moved", moved(r), 0, 1e-15)
		nears(t, "A'", column(r, 0, pickShaped), column(r, 0, pickA), 1e-15)
		if r.Step != 10+s {
			t.Errorf("step %d, want %d", r.Step, 10+s)
		}
	}
}

// c4 undoes what c1 does, trace by trace.
func TestInverseControlMirrorsC1(t *testing.T) {
	h := func(step, i int) float64 { return 0.2 + 0.13*float64((step*3+i*5)%7) }
	direct := run(t, shaper(t, nil), 10, h)
	inverse := run(t, shaper(t, func(s *Setup) { s.Options.Rule = "c4" }), 10, h)
	for s := range direct {
		a := everything(direct[s], pickA)
		up, down := everything(direct[s], pickShaped), everything(inverse[s], pickShaped)
		for i := range a {
			near(t, "A' of c1 + A' of c4", up[i]+down[i], 2*a[i], 1e-12)
		}
	}
}

// Exactly at grpo.min_std a group is informative: zero variance is below it.
func TestMinStdIsExclusive(t *testing.T) {
	for _, c := range []struct {
		min  float64
		zero bool
	}{{0.5, false}, {math.Nextafter(0.5, 1), true}, {0.25, false}, {1, true}} {
		g := group("q", []float64{0, 1, 0.5}, []float64{1, 1, 1}) // std exactly 0.5
		r := shape(t, shaper(t, func(s *Setup) { s.Advantage.MinStd = c.min }), batchOf(g))
		near(t, "std", r.Groups[0].Std, 0.5, 0)
		if r.Groups[0].ZeroVariance != c.zero {
			t.Errorf("min_std %v: zero variance %v", c.min, r.Groups[0].ZeroVariance)
		}
	}
}

// The whole of a run under each estimator differs only in its label: H is what
// the caller says it is.
func TestEstimatorIsALabel(t *testing.T) {
	h := func(step, i int) float64 { return 0.2 + 0.1*float64((step+i)%4) }
	want := run(t, shaper(t, nil), 5, h)
	for _, e := range []Estimator{Surprisal, TopK(20)} {
		got := run(t, shaper(t, func(s *Setup) { s.Options.Entropy = e }), 5, h)
		for s := range want {
			nears(t, string(e), everything(got[s], pickShaped), everything(want[s], pickShaped), 0)
			if got[s].Estimator != e {
				t.Errorf("estimator %s, want %s", got[s].Estimator, e)
			}
		}
	}
}
