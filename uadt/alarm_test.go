package uadt

import (
	"testing"

	"pgregory.net/rapid"
)

// find returns the named alarm.
func find(r Result, name string) (Alarm, bool) {
	for _, a := range r.Alarms {
		if a.Name == name {
			return a, true
		}
	}
	return Alarm{}, false
}

// Each alarm is silent at its limit and speaks just past it.
func TestAlarmLimits(t *testing.T) {
	for _, c := range []struct {
		name, metric string
		limit        float64
	}{
		{AlarmSaturated, "uadt/omega_saturated", limitSaturated},
		{AlarmSignFlips, "uadt/sign_flips", 0},
		{AlarmMassMoved, "uadt/mass_moved", limitMassMoved},
		{AlarmCommonShift, "uadt/common_shift", limitCommonShift},
		{AlarmZeroVariance, "uadt/zero_variance_share", limitZeroVariance},
		{AlarmCorrLength, "uadt/corr_length_within", limitCorrelation},
		{AlarmCorrCorrect, "uadt/corr_correct_within", limitCorrelation},
	} {
		for _, sign := range []float64{1, -1} {
			for _, past := range []bool{false, true} {
				value := c.limit
				if past {
					value += 0.01
				}
				w := &work{setup: setup(nil), result: Result{Counted: 1, Tau: 1, Mu: 1, Metrics: map[string]float64{c.metric: sign * value}}}
				w.result.Alarms = w.alarms()
				a, on := find(w.result, c.name)
				if on != past {
					t.Errorf("%s at %v: raised %v", c.name, sign*value, on)
				}
				if on && (a.Value != sign*value || a.Limit != c.limit) {
					t.Errorf("alarm %+v, want value %v and limit %v", a, sign*value, c.limit)
				}
				if len(w.result.Alarms) > 1 {
					t.Errorf("%s came with others: %v", c.name, w.result.Alarms)
				}
			}
		}
	}
}

func TestAlarmsOfAbsentMetricsAreSilent(t *testing.T) {
	w := &work{setup: setup(nil), result: Result{Counted: 1, Tau: 1, Mu: 1, Metrics: map[string]float64{}}}
	if got := w.alarms(); len(got) != 0 {
		t.Errorf("alarms %v", got)
	}
}

func TestTauDriftLimit(t *testing.T) {
	for _, c := range []struct {
		tau, mu float64
		want    bool
	}{
		{1, 1.5, false}, {1, 1.51, true}, {1, 0.5, false}, {1, 0.49, true},
		{0.001, 0.005, false}, {0.001, 0.0075, true}, // relative to the floor of 0.01
	} {
		w := &work{setup: setup(nil), result: Result{Counted: 1, Tau: c.tau, Mu: c.mu, Metrics: map[string]float64{}}}
		w.result.Alarms = w.alarms()
		if got := alarmed(w.result, AlarmTauDrift); got != c.want {
			t.Errorf("tau %v, mu %v: raised %v", c.tau, c.mu, got)
		}
	}
}

func TestGroupSizeLimit(t *testing.T) {
	for _, c := range []struct {
		raw, shaped float64
		want        bool
	}{{8, 8, false}, {8, 4, false}, {8, 3.9, true}, {2, 1, false}} {
		w := &work{setup: setup(nil), result: Result{Counted: 1, Tau: 1, Mu: 1, Metrics: map[string]float64{
			"uadt/effective_group_size_raw": c.raw, "uadt/effective_group_size": c.shaped,
		}}}
		w.result.Alarms = w.alarms()
		if got := alarmed(w.result, AlarmGroupSize); got != c.want {
			t.Errorf("from %v to %v: raised %v", c.raw, c.shaped, got)
		}
	}
}

// Alarms come in one order and at most once each; a rule that cannot flip signs
// never raises the alarm for it.
func TestAlarmsOfAnyBatch(t *testing.T) {
	order := []string{AlarmKappaUnlimited, AlarmLambdaLarge, AlarmNoEntropy, AlarmTauDrift, AlarmFloorActive, AlarmSaturated,
		AlarmSignFlips, AlarmMassMoved, AlarmCommonShift, AlarmZeroVariance, AlarmGroupSize, AlarmCorrLength, AlarmCorrCorrect}
	place := map[string]int{}
	for i, name := range order {
		place[name] = i
	}
	rapid.Check(t, func(t *rapid.T) {
		setup, first, batch := drawCase(t)
		r := shapeTwice(t, setup, first, batch)
		last := -1
		for _, a := range r.Alarms {
			at, known := place[a.Name]
			if !known || at <= last {
				t.Fatalf("alarm %s out of order in %v", a.Name, r.Alarms)
			}
			last = at
		}
		if _, on := find(r, AlarmSignFlips); on && !setup.Options.Recenter && setup.Options.Rule != "c3" {
			t.Fatalf("%s flipped signs", setup.Options.Rule)
		}
		if _, on := find(r, AlarmNoEntropy); on != (r.Counted == 0) {
			t.Fatalf("no_entropy is %v with %d counted", on, r.Counted)
		}
	})
}
