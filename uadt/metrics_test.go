package uadt

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// Two groups worked by hand: dr_grpo, rule c1, norm diff, tau = mu = 2.
func TestMetricsWorkedByHand(t *testing.T) {
	a, b := group("a", []float64{1, 0}, []float64{1, 3}), group("b", []float64{0, 0}, []float64{2, 2})
	s := shaper(t, func(s *Setup) { s.Options.Norm, s.Advantage.Advantage = Diff, DrGRPO })
	r := shape(t, s, batchOf(a, b))
	omega := math.Tanh(1)
	nears(t, "A", everything(r, pickA), []float64{0.5, -0.5, 0, 0}, 0)
	nears(t, "A'", everything(r, pickShaped), []float64{0.5 - 0.25*omega, -0.5 + 0.25*omega, 0, 0}, 1e-15)
	for name, want := range map[string]float64{
		"uadt/tau": 2, "uadt/sigma": math.Sqrt(0.5), "uadt/tau_drift": 0, "uadt/counted": 4,
		"uadt/lambda": 0.5, "uadt/gain": 1, "uadt/gamma": math.Exp2(-1.0 / 6), "uadt/floor_active": 0,
		"uadt/omega_mean": 0, "uadt/omega_std": omega / math.Sqrt2, "uadt/omega_saturated": 0,
		"uadt/mass_moved": 0.5 * omega, "uadt/sign_flips": 0, "uadt/common_shift": 0,
		"uadt/zero_variance_groups": 1, "uadt/zero_variance_share": 0.5,
		"uadt/effective_group_size": 2, "uadt/effective_group_size_raw": 2,
		"advantage/raw_pos": 0.25, "advantage/raw_neg": -0.25,
		"advantage/shaped_pos": 0.25 - 0.125*omega, "advantage/shaped_neg": -0.25 + 0.125*omega,
		"entropy/mean": 2, "entropy/min": 1, "entropy/max": 3, "entropy/right": 1, "entropy/wrong": 7.0 / 3,
		"entropy/within_std": math.Sqrt(0.5), "entropy/between_std": 0,
	} {
		metric(t, r, name, want)
	}
	for _, name := range []string{"uadt/corr_length_within", "uadt/corr_length_between", "uadt/corr_correct_within", "uadt/corr_correct_between"} {
		absent(t, r, name)
		absent(t, r, name+"_n")
	}
}

// A reward equal to the mean leaves a rounding error for A, whose sign depends
// on the order of the sum; recentering moves it past 0, and that is no flip.
func TestRoundingIsNoSignFlip(t *testing.T) {
	for _, rewards := range [][]float64{{0, 0, 0.5, 0, 0, 0.1}, {0, 0.5, 0, 0, 0, 0.1}, {0.1, 0, 0, 0, 0, 0.5}} {
		s := shaper(t, func(s *Setup) {
			s.Options.Rule, s.Options.Recenter, s.Advantage.Advantage = "none", true, DrGRPO
		})
		r := shape(t, s, batchOf(group("a", rewards, []float64{1, 1, 1, 1, 1, 1})))
		metric(t, r, "uadt/sign_flips", 0)
	}
}

func TestMetricsAreFiniteAndWellNamed(t *testing.T) {
	r := shape(t, shaper(t, nil), manyGroups(12, 4))
	for name, v := range r.Metrics {
		if !finite(v) {
			t.Errorf("%s = %v", name, v)
		}
		if !strings.HasPrefix(name, "uadt/") && !strings.HasPrefix(name, "advantage/") && !strings.HasPrefix(name, "entropy/") {
			t.Errorf("metric %s belongs to nobody", name)
		}
	}
	for _, name := range []string{"tau", "sigma", "tau_drift", "common_shift", "omega_std", "floor_active", "omega_mean",
		"omega_saturated", "lambda", "gain", "mass_moved", "sign_flips", "zero_variance_groups", "effective_group_size",
		"corr_length_within", "corr_length_between", "corr_correct_within", "corr_correct_between"} {
		if _, ok := r.Metrics["uadt/"+name]; !ok {
			t.Errorf("metric uadt/%s is absent from a rich batch", name)
		}
	}
}

// manyGroups is a batch in which length, H and correctness vary.
func manyGroups(groups, traces int) Batch {
	var b Batch
	for q := range groups {
		g := Group{ID: fmt.Sprintf("q%d", q)}
		for i := range traces {
			x := q*7 + i*5
			g.Traces = append(g.Traces, Trace{
				Reward: indicator(x%3 <= q%3), Correct: x%3 <= q%3, Length: 1 + (x*13)%17, H: 0.1 + float64((x*11)%23)/10,
			})
		}
		b.Groups = append(b.Groups, g)
	}
	return b
}

// A ratio with denominator 0 is absent, never 0.
func TestRatiosWithoutDenominatorAreAbsent(t *testing.T) {
	r := shape(t, shaper(t, nil), batchOf(group("flat", []float64{1, 1}, []float64{1, 2})))
	for _, name := range []string{"uadt/mass_moved", "uadt/common_shift", "uadt/effective_group_size",
		"uadt/effective_group_size_raw", "advantage/raw_pos", "advantage/raw_neg", "advantage/shaped_pos", "advantage/shaped_neg", "entropy/wrong"} {
		absent(t, r, name)
	}
	metric(t, r, "entropy/right", 1.5)
	metric(t, r, "uadt/zero_variance_share", 1)
}

// Missing rewards are neither right nor wrong.
func TestEntropyOfRightAndWrong(t *testing.T) {
	g := group("q", []float64{1, 0, 0}, []float64{1, 2, 30})
	g.Traces[2].Missing = true
	r := shape(t, shaper(t, nil), batchOf(g))
	metric(t, r, "entropy/right", 1)
	metric(t, r, "entropy/wrong", 2)
	metric(t, r, "entropy/mean", 11)
	metric(t, r, "entropy/max", 30)
}

func TestOmegaSaturation(t *testing.T) {
	s := diffShaper(t, "c1", 1, nil)
	r := shape(t, s, batchOf(group("q", []float64{1, 0, 0, 0}, []float64{1, 2, 4, 5})))
	metric(t, r, "uadt/omega_saturated", 0.5) // tanh(3) and tanh(4), not tanh(1)
	if alarmed(r, AlarmSaturated) {
		t.Errorf("half is not most: %v", r.Alarms)
	}
	r = shape(t, s, batchOf(group("q", []float64{1, 0, 0, 0}, []float64{1, 6, 4, 5})))
	metric(t, r, "uadt/omega_saturated", 0.75)
	if !alarmed(r, AlarmSaturated) {
		t.Errorf("no alarm in %v", r.Alarms)
	}
}

func TestEffectiveSize(t *testing.T) {
	for _, c := range []struct {
		a    []float64
		want float64
	}{{[]float64{1, -1, 1, -1}, 4}, {[]float64{3, 0, 0}, 1}, {[]float64{2, 1, 1}, 16.0 / 6}, {[]float64{-5}, 1}} {
		got, ok := effectiveSize(c.a)
		if !ok {
			t.Errorf("%v has no size", c.a)
		}
		near(t, "size", got, c.want, 1e-15)
	}
	for _, a := range [][]float64{nil, {0, 0}} {
		if got, ok := effectiveSize(a); ok {
			t.Errorf("%v has size %v", a, got)
		}
	}
}

func TestTauDrift(t *testing.T) {
	s := shaper(t, func(s *Setup) { s.Options.Gamma = Gamma{Value: 0.99} })
	shape(t, s, batchOf(group("q", []float64{1, 0}, []float64{1, 1})))
	r := shape(t, s, batchOf(group("q", []float64{1, 0}, []float64{1.4, 1.4})))
	metric(t, r, "uadt/tau_drift", 0.4)
	if alarmed(r, AlarmTauDrift) {
		t.Errorf("40 %% of tau is within the limit: %v", r.Alarms)
	}
	r = shape(t, s, batchOf(group("q", []float64{1, 0}, []float64{0.2, 0.2})))
	if !alarmed(r, AlarmTauDrift) {
		t.Errorf("no alarm in %v", r.Alarms)
	}
}

func TestAlarms(t *testing.T) {
	live := batchOf(group("q", []float64{1, 0, 1, 0}, []float64{1, 1.1, 0.9, 1}))
	for _, c := range []struct {
		name   string
		change func(*Setup)
		batch  Batch
	}{
		{AlarmKappaUnlimited, func(s *Setup) { s.Options.Rule, s.Options.Kappa = "c3", 0 }, live},
		{AlarmLambdaLarge, func(s *Setup) { s.Options.Lambda = Constant(1) }, live},
		{AlarmFloorActive, func(s *Setup) { s.Options.Floor = 5 }, live},
		{AlarmFloorActive, func(s *Setup) { s.Options.Norm, s.Options.Floor = ZScore, 5 }, live},
		{AlarmZeroVariance, nil, batchOf(group("flat", []float64{0, 0}, []float64{1, 1}))},
		{AlarmMassMoved, func(s *Setup) { s.Options.Lambda, s.Options.Norm, s.Options.Gain = Constant(0.9), ZScore, Constant(3) },
			batchOf(group("q", []float64{1, 0}, []float64{1, 2}))},
		{AlarmCommonShift, func(s *Setup) { s.Options.Norm = ZScore }, batchOf(
			group("q", []float64{1, 0}, []float64{3, 3}), group("flat", []float64{0, 0, 0, 0}, []float64{1, 1, 1, 1}))},
		{AlarmGroupSize, func(s *Setup) { s.Options.Lambda, s.Options.Norm, s.Options.Gain = Constant(1), ZScore, Constant(5) },
			// Certain and right, or uncertain and wrong: nothing. Certain and wrong: twice.
			batchOf(group("q", []float64{1, 1, 1, 0, 0, 0}, []float64{0, 0, 0, 0, 9, 9}))},
	} {
		r := shape(t, shaper(t, c.change), c.batch)
		if !alarmed(r, c.name) {
			t.Errorf("%s is silent; metrics %v, alarms %v", c.name, r.Metrics, r.Alarms)
		}
		for _, a := range r.Alarms {
			if a.Message == "" || a.Name == "" || !finite(a.Value) || !finite(a.Limit) {
				t.Errorf("alarm %+v", a)
			}
		}
	}
	// An ordinary batch is quiet, and so is rule none whatever lambda is.
	if r := shape(t, shaper(t, nil), live); len(r.Alarms) != 0 {
		t.Errorf("alarms %v", r.Alarms)
	}
	quiet := shape(t, shaper(t, func(s *Setup) { s.Options.Rule, s.Options.Lambda = "none", Constant(3) }), live)
	if len(quiet.Alarms) != 0 {
		t.Errorf("alarms %v", quiet.Alarms)
	}
}

// H that is a function of length, or of correctness, within every group.
func TestCorrelationAlarms(t *testing.T) {
	var byLength, byCorrect Batch
	for q := range 5 {
		l, c := Group{ID: fmt.Sprint(q)}, Group{ID: fmt.Sprint(q)}
		for i := range 4 {
			length := 5 + (i*3+q)%7
			right := (i+q)%2 == 0
			l.Traces = append(l.Traces, Trace{Reward: indicator(right), Correct: right, Length: length, H: float64(length) / 10})
			c.Traces = append(c.Traces, Trace{Reward: indicator(right), Correct: right, Length: length, H: 1 - 0.5*indicator(right)})
		}
		byLength.Groups = append(byLength.Groups, l)
		byCorrect.Groups = append(byCorrect.Groups, c)
	}
	r := shape(t, shaper(t, nil), byLength)
	metric(t, r, "uadt/corr_length_within", 1)
	metric(t, r, "uadt/corr_length_within_n", 20)
	absent(t, r, "uadt/corr_length_between") // five groups are fewer than ten pairs
	if !alarmed(r, AlarmCorrLength) {
		t.Errorf("alarms %v", r.Alarms)
	}
	r = shape(t, shaper(t, nil), byCorrect)
	metric(t, r, "uadt/corr_correct_within", -1)
	if !alarmed(r, AlarmCorrCorrect) {
		t.Errorf("alarms %v", r.Alarms)
	}
}
