package uadt

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
)

// diffSetup is norm diff with tau fixed at 0.6: gamma 1 never moves, and the
// state says where it starts.
func diffShaper(t tb, rule string, tau float64, change func(*Setup)) *Shaper {
	t.Helper()
	s := shaper(t, func(s *Setup) {
		s.Options.Rule, s.Options.Norm, s.Options.Gamma = rule, Diff, Gamma{Value: 1}
		if change != nil {
			change(s)
		}
	})
	if err := s.Restore(State{Version: stateVersion, Tau: tau, Seeded: true, Estimator: s.setup.Options.Entropy}); err != nil {
		t.Fatalf("restore: %v", err)
	}
	return s
}

// The worked table once more, through the whole shaper: two traces of rewards 1
// and 0 have A = +-sqrt(1/2) before eps.
func TestShapeWorkedNumbers(t *testing.T) {
	dr := func(s *Setup) { s.Advantage.Advantage = RLOO } // rewards +-0.5 give A = +-1
	for _, c := range []struct {
		rule     string
		up, down float64
	}{
		{"none", 1, -1}, {"c1", 1.098688, -0.508163}, {"c2", 1.098688, -1.491837},
		{"c3", 1.098688, -0.508163}, {"c4", 0.901312, -1.491837},
	} {
		r := shape(t, diffShaper(t, c.rule, 0.6, dr), batchOf(group("q", []float64{0.5, -0.5}, []float64{0.8, 3})))
		nears(t, c.rule+" A", column(r, 0, pickA), []float64{1, -1}, 1e-12)
		nears(t, c.rule+" omega", column(r, 0, pickOmega), []float64{0.197375, 0.983675}, 5e-7)
		nears(t, c.rule+" A'", column(r, 0, pickShaped), []float64{c.up, c.down}, 1e-6)
	}
}

func TestFirstBatchSeedsTheThreshold(t *testing.T) {
	s := shaper(t, func(s *Setup) { s.Options.Gamma = Gamma{Value: 0.9} })
	r := shape(t, s, batchOf(group("q", []float64{1, 0}, []float64{0.2, 0.6})))
	near(t, "tau", r.Tau, 0.4, 1e-15)
	near(t, "sigma", r.Sigma, 0.2, 1e-15)
	near(t, "next tau", r.NextTau, 0.4, 1e-15)
	nears(t, "u", column(r, 0, pickU), []float64{-0.5, 0.5}, 1e-12)
	r = shape(t, s, batchOf(group("q", []float64{1, 0}, []float64{1, 1})))
	near(t, "tau of the second batch", r.Tau, 0.4, 1e-15)
	near(t, "next tau", r.NextTau, 0.9*0.4+0.1*1, 1e-15)
	near(t, "next sigma", r.NextSigma, 0.9*0.2, 1e-15)
	r = shape(t, s, batchOf(group("q", []float64{1, 0}, []float64{1, 1})))
	near(t, "tau of the third batch", r.Tau, 0.46, 1e-15)
	if r.Step != 2 || s.State().Step != 3 {
		t.Errorf("steps %d and %d, want 2 and 3", r.Step, s.State().Step)
	}
}

func TestUpdateBeforeUse(t *testing.T) {
	s := shaper(t, func(s *Setup) { s.Options.Gamma, s.Options.Update = Gamma{Value: 0.9}, UpdateBefore })
	first := shape(t, s, batchOf(group("q", []float64{1, 0}, []float64{0.2, 0.6})))
	near(t, "tau of the first batch", first.Tau, 0.4, 1e-15)
	second := shape(t, s, batchOf(group("q", []float64{1, 0}, []float64{1, 1})))
	near(t, "tau of the second batch", second.Tau, 0.46, 1e-15)
	near(t, "next tau", second.NextTau, 0.46, 1e-15)
}

// gamma 0.99 where H falls linearly from 0.1 to 0.02 over 60 steps: mean omega
// -0.34; gamma 0.8: -0.11. That is what c1 then subtracts from every advantage.
func TestSlowThresholdIsANegativeBaseline(t *testing.T) {
	for _, c := range []struct{ gamma, want float64 }{{0.99, -0.34}, {0.8, -0.11}} {
		s := shaper(t, func(s *Setup) { s.Options.Gamma = Gamma{Value: c.gamma} })
		sum := 0.0
		for step := range 60 {
			h := 0.1 - 0.08*float64(step)/59
			r := shape(t, s, batchOf(group("q", []float64{1, 0}, []float64{h, h})))
			sum += r.Metrics["uadt/omega_mean"]
		}
		near(t, "mean omega", sum/60, c.want, 0.01)
	}
}

func TestNorms(t *testing.T) {
	h := []float64{0.2, 0.6} // tau 0.4, sigma 0.2
	for _, c := range []struct {
		norm Norm
		want []float64
	}{{Diff, []float64{-0.2, 0.2}}, {Rel, []float64{-0.5, 0.5}}, {ZScore, []float64{-1, 1}}} {
		r := shape(t, shaper(t, func(s *Setup) { s.Options.Norm = c.norm; s.Options.Gain = Constant(2) }),
			batchOf(group("q", []float64{1, 0}, h)))
		nears(t, string(c.norm)+" u", column(r, 0, pickU), c.want, 1e-12)
		nears(t, string(c.norm)+" omega", column(r, 0, pickOmega),
			[]float64{math.Tanh(2 * c.want[0]), math.Tanh(2 * c.want[1])}, 1e-12)
	}
}

func TestFloorStandsInForSmallDenominators(t *testing.T) {
	for _, norm := range []Norm{Rel, ZScore} {
		r := shape(t, shaper(t, func(s *Setup) { s.Options.Norm, s.Options.Floor = norm, 0.1 }),
			batchOf(group("q", []float64{1, 0}, []float64{0.01, 0.03}))) // tau 0.02, sigma 0.01
		nears(t, "u", column(r, 0, pickU), []float64{-0.1, 0.1}, 1e-12)
		metric(t, r, "uadt/floor_active", 1)
	}
	r := shape(t, shaper(t, func(s *Setup) { s.Options.Norm = Diff }), batchOf(group("q", []float64{1, 0}, []float64{0, 0})))
	metric(t, r, "uadt/floor_active", 0)
}

func TestMissingRewards(t *testing.T) {
	g := group("q", []float64{1, 0.5, 0, 1, 0.5, 9}, []float64{1, 1, 1, 1, 1, 4})
	g.Traces[5].Missing, g.Traces[5].Correct, g.Traces[5].Reward = true, false, math.NaN()
	r := shape(t, shaper(t, nil), batchOf(g))
	nears(t, "A", column(r, 0, pickA), []float64{0.956180602, -0.239045150, -1.434270903, 0.956180602, -0.239045150, 0}, 1e-9)
	near(t, "mean", r.Groups[0].Mean, 0.6, 1e-15)
	near(t, "std", r.Groups[0].Std, 0.418330013, 1e-9)
	if r.Groups[0].Scored != 5 || r.Groups[0].ZeroVariance {
		t.Errorf("group %+v", r.Groups[0])
	}
	near(t, "A' of the missing one", r.Groups[0].Traces[5].Shaped, 0, 0)
	near(t, "mu, the missing one included", r.Mu, 1.5, 1e-15)
	if !r.Groups[0].Traces[5].Counted || r.Groups[0].Traces[5].Omega == 0 {
		t.Errorf("the missing one has no omega: %+v", r.Groups[0].Traces[5])
	}
}

func TestFewerThanTwoScored(t *testing.T) {
	g := group("q", []float64{1, 0, 0}, []float64{1, 2, 3})
	g.Traces[1].Missing, g.Traces[2].Missing = true, true
	lone := group("lone", []float64{1}, []float64{2})
	r := shape(t, shaper(t, func(s *Setup) { s.Options.Rule, s.Options.Kappa = "c3", 0 }), batchOf(g, lone))
	nears(t, "A", everything(r, pickA), make([]float64, 4), 0)
	nears(t, "A'", everything(r, pickShaped), make([]float64, 4), 0)
	for _, g := range r.Groups {
		if g.ZeroVariance || g.Informative || g.Scored != 1 {
			t.Errorf("group %+v", g)
		}
	}
}

// c3 without a bound would give zero-variance groups a gradient; ZeroSafe does
// not let it.
func TestZeroVarianceGroupsStayZero(t *testing.T) {
	b := batchOf(group("flat", []float64{1, 1, 1}, []float64{1, 2, 9}), group("live", []float64{1, 0, 1}, []float64{1, 2, 3}))
	for _, rule := range ruleNames() {
		for _, recenter := range []bool{false, true} {
			r := shape(t, shaper(t, func(s *Setup) {
				s.Options.Rule, s.Options.Kappa, s.Options.Recenter = rule, 0, recenter
			}), b)
			nears(t, rule, column(r, 0, pickShaped), make([]float64, 3), 0)
			if !r.Groups[0].ZeroVariance || r.Groups[1].ZeroVariance {
				t.Errorf("%s: zero variance %v, %v", rule, r.Groups[0].ZeroVariance, r.Groups[1].ZeroVariance)
			}
		}
	}
}

func TestMinStdDecidesZeroVariance(t *testing.T) {
	almost := group("q", []float64{0.5, 0.5 + 1e-3}, []float64{1, 2}) // std 7.07e-4
	r := shape(t, shaper(t, nil), batchOf(almost))
	if !r.Groups[0].ZeroVariance {
		t.Errorf("std %v is not below 1e-3", r.Groups[0].Std)
	}
	r = shape(t, shaper(t, func(s *Setup) { s.Advantage.MinStd = 1e-4 }), batchOf(almost))
	if !r.Groups[0].Informative || r.Groups[0].Traces[1].A <= 0 {
		t.Errorf("group %+v", r.Groups[0])
	}
}

// KL in the reward: the advantage sees the penalty, zero variance does not.
func TestPenalty(t *testing.T) {
	flat := group("flat", []float64{1, 1}, []float64{1, 2})
	flat.Traces[0].Penalty = 0.5
	live := group("live", []float64{1, 0}, []float64{1, 2})
	live.Traces[0].Penalty = 0.4
	r := shape(t, shaper(t, func(s *Setup) { s.Options.Rule, s.Advantage.Advantage = "none", DrGRPO }), batchOf(flat, live))
	nears(t, "A", everything(r, pickA), []float64{0, 0, 0.3, -0.3}, 1e-15)
	near(t, "mean before the penalty", r.Groups[1].Mean, 0.5, 0)
}

func TestTruncatedTraces(t *testing.T) {
	g := group("q", []float64{1, 0, 1}, []float64{1, 3, 8})
	g.Traces[2].Truncated = true
	r := shape(t, shaper(t, nil), batchOf(g))
	near(t, "mu without it", r.Mu, 2, 0)
	last := r.Groups[0].Traces[2]
	if last.Counted || last.Omega != 0 || last.U != 0 || !last.HasH || last.Shaped != last.A || last.A == 0 {
		t.Errorf("truncated trace %+v", last)
	}
	r = shape(t, shaper(t, func(s *Setup) { s.Options.Truncated = Include }), batchOf(g))
	near(t, "mu with it", r.Mu, 4, 0)
	if last := r.Groups[0].Traces[2]; !last.Counted || last.Omega <= 0 {
		t.Errorf("truncated trace %+v", last)
	}
}

func TestDroppedTraces(t *testing.T) {
	g := group("q", []float64{1, 0, 5, 7}, []float64{1, 3, math.NaN(), 8})
	g.Traces[2].Length, g.Traces[3].Aborted = 0, true
	r := shape(t, shaper(t, nil), batchOf(g))
	if got := []DropReason{r.Groups[0].Traces[1].Dropped, r.Groups[0].Traces[2].Dropped, r.Groups[0].Traces[3].Dropped}; !reflect.DeepEqual(got, []DropReason{NotDropped, "empty", "aborted"}) {
		t.Errorf("reasons %v", got)
	}
	near(t, "mean of the two left", r.Groups[0].Mean, 0.5, 0)
	near(t, "mu of the two left", r.Mu, 2, 0)
	for _, i := range []int{2, 3} {
		if got := r.Groups[0].Traces[i]; got.A != 0 || got.Shaped != 0 || got.HasH || got.Counted || got.Omega != 0 {
			t.Errorf("dropped trace %+v", got)
		}
	}
}

func TestSpan(t *testing.T) {
	g := group("q", []float64{1, 0}, []float64{0, 0})
	g.Traces[0].Length, g.Traces[0].Entropies, g.Traces[0].Span = 4, []float32{1, 2, 3, 4}, []bool{false, true, true, false}
	g.Traces[1].Length, g.Traces[1].Entropies, g.Traces[1].Span = 2, []float32{1, 2}, []bool{false, false}
	r := shape(t, shaper(t, func(s *Setup) { s.Options.Span = SpanThink }), batchOf(g))
	near(t, "H", r.Groups[0].Traces[0].H, 2.5, 0)
	near(t, "mu", r.Mu, 2.5, 0)
	second := r.Groups[0].Traces[1]
	if second.HasH || second.Counted || second.Omega != 0 || second.Shaped != second.A || second.A == 0 {
		t.Errorf("a trace without a span %+v", second)
	}
}

func TestGroupLevel(t *testing.T) {
	a, b := group("a", []float64{1, 0}, []float64{1, 3}), group("b", []float64{1, 0}, []float64{5, 7})
	r := shape(t, shaper(t, func(s *Setup) { s.Options.Level, s.Options.Norm = LevelGroup, Diff }), batchOf(a, b))
	near(t, "mu", r.Mu, 4, 0)
	near(t, "SD of the group means", r.SD, 2, 0)
	nears(t, "u", everything(r, pickU), []float64{-2, -2, 2, 2}, 0)
	nears(t, "H stays the trace's", everything(r, pickH), []float64{1, 3, 5, 7}, 0)
}

// A = [1.2, .05, -.4, -.85], omega .9: +0.05 becomes -0.209.
func TestRecenterMayFlipSigns(t *testing.T) {
	rewards := []float64{1.2, 0.05, -0.4, -0.85} // mean 0: dr_grpo gives them back
	h := make([]float64, 4)
	for i := range h {
		h[i] = 0.6 + math.Atanh(0.9)
	}
	s := diffShaper(t, "c1", 0.6, func(s *Setup) { s.Advantage.Advantage, s.Options.Recenter = DrGRPO, true })
	r := shape(t, s, batchOf(group("q", rewards, h), group("flat", []float64{3, 3}, []float64{0.6, 0.6})))
	nears(t, "A", column(r, 0, pickA), rewards, 1e-15)
	near(t, "A' of +0.05", r.Groups[0].Traces[1].Shaped, -0.209, 5e-4)
	metric(t, r, "uadt/sign_flips", 1)
	metric(t, r, "uadt/common_shift", 0)
	nears(t, "the flat group", column(r, 1, pickShaped), []float64{0, 0}, 0)
	if !alarmed(r, AlarmSignFlips) {
		t.Errorf("no alarm in %v", r.Alarms)
	}
}

func TestRecenterIsOverTheBatch(t *testing.T) {
	a, b := group("a", []float64{1, 0}, []float64{1, 1}), group("b", []float64{1, 0}, []float64{3, 3})
	r := shape(t, shaper(t, func(s *Setup) { s.Options.Recenter = true }), batchOf(a, b))
	sum := 0.0
	for _, x := range everything(r, pickShaped) {
		sum += x
	}
	near(t, "sum over the batch", sum, 0, 1e-12)
	if first := column(r, 0, pickShaped); math.Abs(first[0]+first[1]) < 1e-3 {
		t.Errorf("each group was centred on its own: %v", first)
	}
}

func TestRescaleKeepsTheMass(t *testing.T) {
	b := batchOf(group("a", []float64{1, 0, 0.5}, []float64{1, 2, 3}), group("b", []float64{1, 0, 0}, []float64{3, 1, 5}))
	for _, recenter := range []bool{false, true} {
		r := shape(t, shaper(t, func(s *Setup) { s.Options.Rescale, s.Options.Recenter = true, recenter }), b)
		var before, after float64
		for _, g := range r.Groups {
			for _, x := range g.Traces {
				before += math.Abs(x.A)
				after += math.Abs(x.Shaped)
			}
		}
		near(t, "sum|A'|", after, before, 1e-12)
	}
	flat := shape(t, shaper(t, func(s *Setup) { s.Options.Rescale = true }), batchOf(group("q", []float64{1, 1}, []float64{1, 2})))
	nears(t, "nothing to scale", column(flat, 0, pickShaped), []float64{0, 0}, 0)
}

func TestSchedulesAreReadAtTheShapingStep(t *testing.T) {
	s := shaper(t, func(s *Setup) {
		s.Options.Lambda = Schedule{Shape: ShapeLinear, From: 0.5, To: 0, Over: Extent{Share: 0.5}}
		s.Options.Gain = Schedule{Shape: ShapeStep, From: 1, To: 2, Over: Extent{Steps: 2}}
		s.StageSteps = 8
	})
	for step, want := range []struct{ lambda, gain float64 }{{0.5, 1}, {0.375, 1}, {0.25, 2}, {0.125, 2}, {0, 2}, {0, 2}} {
		// A batch whose groups all have zero variance moves on as well.
		r := shape(t, s, batchOf(group("q", []float64{float64(step % 2), 0}, []float64{1, 2})))
		near(t, "lambda", r.Lambda, want.lambda, 1e-15)
		near(t, "gain", r.Gain, want.gain, 0)
	}
}

func TestBatchInWhichNoTraceCounts(t *testing.T) {
	cut := group("q", []float64{1, 0}, []float64{1, 2})
	cut.Traces[0].Truncated, cut.Traces[1].Truncated = true, true
	s := shaper(t, nil)
	r := shape(t, s, batchOf(cut))
	if s.State().Seeded || s.State().Step != 1 {
		t.Errorf("state %+v", s.State())
	}
	nears(t, "A'", column(r, 0, pickShaped), column(r, 0, pickA), 0)
	absent(t, r, "uadt/tau")
	absent(t, r, "entropy/mean")
	if !alarmed(r, AlarmNoEntropy) {
		t.Errorf("alarms %v", r.Alarms)
	}
	shape(t, s, batchOf(group("q", []float64{1, 0}, []float64{1, 3})))
	r = shape(t, s, batchOf(cut))
	near(t, "tau", r.Tau, 2, 0)
	near(t, "next tau", r.NextTau, 2, 0)
	metric(t, r, "uadt/tau", 2)
}

func TestShapeRefusesBadInput(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	for name, change := range map[string]func(*Trace){
		"NaN reward":          func(x *Trace) { x.Reward = nan },
		"infinite reward":     func(x *Trace) { x.Reward = -inf },
		"NaN penalty":         func(x *Trace) { x.Penalty = nan },
		"NaN H":               func(x *Trace) { x.H = nan },
		"infinite H":          func(x *Trace) { x.H = inf },
		"negative H":          func(x *Trace) { x.H = -0.5 },
		"negative length":     func(x *Trace) { x.Length = -1 },
		"too few entropies":   func(x *Trace) { x.Entropies = []float32{1} },
		"NaN token entropy":   func(x *Trace) { x.Length, x.Entropies = 1, []float32{float32(nan)} },
		"infinite in a token": func(x *Trace) { x.Length, x.Entropies = 1, []float32{float32(inf)} },
		"span of other size":  func(x *Trace) { x.Length, x.Entropies, x.Span = 1, []float32{1}, []bool{} },
		"reward out of range": func(x *Trace) { x.Reward = math.MaxFloat64 },
	} {
		s := shaper(t, nil)
		shape(t, s, batchOf(group("first", []float64{1, 0}, []float64{1, 2})))
		before := s.State()
		g := group("bad", []float64{1, 0}, []float64{1, 2})
		change(&g.Traces[1])
		_, err := s.Shape(batchOf(group("good", []float64{1, 0}, []float64{1, 2}), g))
		if err == nil || !strings.Contains(err.Error(), "group 1 (bad)") {
			t.Errorf("%s: error %v does not name the group", name, err)
		}
		if !reflect.DeepEqual(s.State(), before) {
			t.Errorf("%s: the state moved to %+v", name, s.State())
		}
	}
}

func TestShapeRefusesEmptyBatches(t *testing.T) {
	if _, err := shaper(t, nil).Shape(Batch{}); !errors.Is(err, ErrEmptyBatch) {
		t.Errorf("no groups: %v", err)
	}
	if _, err := shaper(t, nil).Shape(batchOf(Group{ID: "void"})); err == nil || !strings.Contains(err.Error(), "void") {
		t.Errorf("no traces: %v", err)
	}
}

func TestShapeReportsEverything(t *testing.T) {
	a, b := group("a", []float64{math.NaN(), 0}, []float64{1, 2}), group("b", []float64{1, 0}, []float64{1, math.NaN()})
	_, err := shaper(t, nil).Shape(batchOf(a, b))
	for _, part := range []string{"group 0 (a) trace 0", "group 1 (b) trace 1"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("nothing about %s in %v", part, err)
		}
	}
}

func TestShadowRules(t *testing.T) {
	b := batchOf(group("q", []float64{1, 0, 0.2}, []float64{1, 2, 3}))
	r := shape(t, shaper(t, func(s *Setup) { s.Options.Shadow = []string{"none", "c2", "c4"} }), b)
	for k, name := range r.ShadowRules {
		alone := shape(t, shaper(t, func(s *Setup) { s.Options.Rule = name }), b)
		nears(t, "shadow "+name, column(r, 0, func(x TraceResult) float64 { return x.Shadow[k] }), column(alone, 0, pickShaped), 0)
	}
	plain := shape(t, shaper(t, nil), b)
	nears(t, "A' beside shadows", column(r, 0, pickShaped), column(plain, 0, pickShaped), 0)
}

func TestValues(t *testing.T) {
	r := Result{Groups: []GroupResult{{Traces: []TraceResult{{Shaped: 0.5}, {TokenShaped: []float64{1, -2}}}}, {}}}
	want := [][][]float32{{{0.5}, {1, -2}}, {}}
	if got := r.Values(); !reflect.DeepEqual(got, want) {
		t.Errorf("values %v, want %v", got, want)
	}
}
