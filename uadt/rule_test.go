package uadt

import (
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// applyOne applies a rule to a group of one trace.
func applyOne(t tb, name string, c ruleCase) float64 {
	t.Helper()
	rule := ruleNamed(name)
	if rule == nil {
		t.Fatalf("no rule %s", name)
	}
	out := make([]float64, 1)
	rule.Shape(RuleInput{Lambda: c.lambda, Kappa: c.kappa, A: []float64{c.a}, Omega: []float64{c.omega},
		H: []float64{0}, Correct: []bool{c.a > 0}, Length: []int{1}}, out)
	return out[0]
}

// The table of the specification: norm diff, tau 0.6, lambda 0.5, k 1.
func TestRulesWorkedNumbers(t *testing.T) {
	for _, c := range []struct {
		h, a, omega, c1, c2, c3free, c3 float64
	}{
		{0.8, 1, 0.197375, 1.098688, 1.098688, 1.098688, 1.098688},
		{0.8, -1, 0.197375, -0.901312, -1.098688, -0.901312, -0.901312},
		{0.4, -1, -0.197375, -1.098688, -0.901312, -1.098688, -1.098688},
		{3.0, -1, 0.983675, -0.508163, -1.491837, -0.508163, -0.508163},
		{0.8, 0.5, 0.197375, 0.549344, 0.549344, 0.598688, 0.598688},
		{3.0, 0.5, 0.983675, 0.745919, 0.745919, 0.991837, 0.75},
		{3.0, 0, 0.983675, 0, 0, 0.491837, 0},
	} {
		omega := math.Tanh(c.h - 0.6)
		near(t, "omega", omega, c.omega, 5e-7)
		near(t, "c1", applyOne(t, "c1", ruleCase{c.a, omega, 0.5, 2}), c.c1, 1e-6)
		near(t, "c2", applyOne(t, "c2", ruleCase{c.a, omega, 0.5, 2}), c.c2, 1e-6)
		near(t, "c3, kappa 0", applyOne(t, "c3", ruleCase{c.a, omega, 0.5, 0}), c.c3free, 1e-6)
		near(t, "c3, kappa 2", applyOne(t, "c3", ruleCase{c.a, omega, 0.5, 2}), c.c3, 1e-6)
		near(t, "c4", applyOne(t, "c4", ruleCase{c.a, omega, 0.5, 2}), 2*c.a-c.c1, 1e-6)
		near(t, "none", applyOne(t, "none", ruleCase{c.a, omega, 0.5, 2}), c.a, 0)
	}
}

func TestRegistry(t *testing.T) {
	if got := ruleNames(); !slices.Equal(got, []string{"none", "c1", "c2", "c3", "c4"}) {
		t.Errorf("rules %v", got)
	}
	for _, r := range Rules() {
		if !r.ZeroSafe {
			t.Errorf("%s is not ZeroSafe", r.Name)
		}
		if r.Name != "none" && !strings.Contains(r.Doc, "reconstruction") {
			t.Errorf("%s does not say that it is a reconstruction: %s", r.Name, r.Doc)
		}
	}
	if r := ruleNamed("c9"); r != nil {
		t.Errorf("found %v", r)
	}
}

type ruleCase struct{ a, omega, lambda, kappa float64 }

func drawRule(t *rapid.T) ruleCase {
	return ruleCase{
		a:      rapid.Float64Range(-5, 5).Draw(t, "A"),
		omega:  math.Tanh(rapid.Float64Range(-6, 6).Draw(t, "k*u")),
		lambda: rapid.Float64Range(0, 0.999).Draw(t, "lambda"),
		kappa:  rapid.Float64Range(1.01, 8).Draw(t, "kappa"),
	}
}

func TestRulesKeepSignsAndZeros(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawRule(t)
		for _, name := range []string{"none", "c1", "c2", "c3", "c4"} {
			got := applyOne(t, name, c)
			if c.a != 0 && math.Signbit(got) != math.Signbit(c.a) {
				t.Fatalf("%s turned %v into %v", name, c.a, got)
			}
			near(t, name+" of 0", applyOne(t, name, ruleCase{0, c.omega, c.lambda, c.kappa}), 0, 0)
		}
	})
}

func TestRulesWithoutStrengthAreNone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawRule(t)
		for _, name := range ruleNames() {
			near(t, name+" at lambda 0", applyOne(t, name, ruleCase{c.a, c.omega, 0, c.kappa}), c.a, 0)
			near(t, name+" at omega 0", applyOne(t, name, ruleCase{c.a, 0, c.lambda, c.kappa}), c.a, 0)
		}
	})
}

func TestRulesRelateToEachOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawRule(t)
		c1 := applyOne(t, "c1", c)
		c2 := applyOne(t, "c2", c)
		inverse := applyOne(t, "c4", ruleCase{c.a, -c.omega, c.lambda, c.kappa})
		near(t, "c4 with -omega", inverse, c1, 0)
		if c.a >= 0 {
			near(t, "c2 of a reward", c2, c1, 1e-12)
		} else {
			near(t, "c1 + c2 of a punishment", c1+c2, 2*c.a, 1e-12)
		}
		// Mirror: c2 is odd in A, c1 is not.
		near(t, "c2 of -A", applyOne(t, "c2", ruleCase{-c.a, c.omega, c.lambda, c.kappa}), -c2, 0)
	})
}

func TestRulesAreMonotonicInOmega(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawRule(t)
		more := c.omega + rapid.Float64Range(0, 1).Draw(t, "more")
		for _, name := range []string{"c1", "c3"} {
			low, high := applyOne(t, name, c), applyOne(t, name, ruleCase{c.a, more, c.lambda, c.kappa})
			if high < low-1e-12 {
				t.Fatalf("%s falls from %v to %v as omega grows", name, low, high)
			}
		}
		low, high := applyOne(t, "c4", c), applyOne(t, "c4", ruleCase{c.a, more, c.lambda, c.kappa})
		if high > low+1e-12 {
			t.Fatalf("c4 grows from %v to %v as omega grows", low, high)
		}
	})
}

func TestRulesAreBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawRule(t)
		size := math.Abs(c.a)
		for _, name := range []string{"c1", "c2", "c4"} {
			got := applyOne(t, name, c)
			if math.Abs(got-c.a) > c.lambda*size+1e-12 {
				t.Fatalf("%s moved %v to %v, past lambda*|A|", name, c.a, got)
			}
		}
		got := applyOne(t, "c3", c)
		if math.Abs(got-c.a) > math.Min(c.lambda, size/c.kappa)+1e-12 {
			t.Fatalf("c3 moved %v to %v, past its bound", c.a, got)
		}
	})
}

// c1 shifts the mean of a group by lambda*mean(omega*|A|).
func TestSignAwareShift(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRewards(t)
		a := mustAdvantages(t, GRPO, r)
		lambda := rapid.Float64Range(0, 0.99).Draw(t, "lambda")
		var shift, want float64
		for i := range a {
			omega := math.Tanh(rapid.Float64Range(-3, 3).Draw(t, "k*u"))
			shift += applyOne(t, "c1", ruleCase{a[i], omega, lambda, 2}) - a[i]
			want += lambda * omega * math.Abs(a[i])
		}
		near(t, "shift", shift, want, 1e-10)
	})
}

// A rule sees one group whole and writes one value a trace.
func TestRuleOfAGroup(t *testing.T) {
	in := RuleInput{Lambda: 0.5, Kappa: 2, A: []float64{1, -1, 0}, Omega: []float64{0.5, 0.5, 0.5},
		H: make([]float64, 3), Correct: make([]bool, 3), Length: make([]int, 3)}
	for name, want := range map[string][]float64{
		"none": {1, -1, 0}, "c1": {1.25, -0.75, 0}, "c2": {1.25, -1.25, 0},
		"c3": {1.25, -0.75, 0}, "c4": {0.75, -1.25, 0},
	} {
		out := make([]float64, 3)
		ruleNamed(name).Shape(in, out)
		nears(t, name, out, want, 1e-15)
	}
}
