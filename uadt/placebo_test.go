package uadt

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"testing"
)

// ladder is a group of n traces whose H, and so omega, all differ.
func ladder(id string, n int) Group {
	g := Group{ID: id}
	for i := range n {
		g.Traces = append(g.Traces, Trace{Reward: float64(i % 2), Correct: i%2 == 1, Length: 5, H: 0.5 + float64(i)/float64(n)})
	}
	return g
}

func placeboOmega(t tb, kind Placebo, seed int64, batches ...Batch) []float64 {
	t.Helper()
	s := shaper(t, func(s *Setup) { s.Options.Placebo, s.Seed, s.Options.Gamma = kind, seed, Gamma{Value: 1} })
	var r Result
	for _, b := range batches {
		r = shape(t, s, b)
	}
	return column(r, 0, pickOmega)
}

func TestWithinShufflesOmega(t *testing.T) {
	b := batchOf(ladder("q", 8))
	plain, shuffled := placeboOmega(t, PlaceboOff, 1, b), placeboOmega(t, PlaceboWithin, 1, b)
	if slices.Equal(plain, shuffled) {
		t.Fatalf("nothing moved: %v", shuffled)
	}
	slices.Sort(plain)
	slices.Sort(shuffled)
	nears(t, "sorted omega", shuffled, plain, 0)
}

// The shuffle depends on the run's seed, the shaping step and the group's id.
func TestWithinDependsOnSeedStepAndGroup(t *testing.T) {
	b := batchOf(ladder("q", 12))
	base := placeboOmega(t, PlaceboWithin, 1, b)
	nears(t, "the same again", placeboOmega(t, PlaceboWithin, 1, b), base, 0)
	for name, other := range map[string][]float64{
		"another seed":  placeboOmega(t, PlaceboWithin, 2, b),
		"another step":  placeboOmega(t, PlaceboWithin, 1, b, b),
		"another group": placeboOmega(t, PlaceboWithin, 1, batchOf(ladder("r", 12))),
	} {
		if slices.Equal(other, base) {
			t.Errorf("%s gave the same shuffle", name)
		}
	}
	// Neighbours do not matter: with gamma 1 and an equal mean, tau is the same.
	nears(t, "beside a neighbour", placeboOmega(t, PlaceboWithin, 1, batchOf(ladder("q", 12), ladder("x", 12))), base, 1e-12)
}

// Over many groups every trace receives every omega about equally often.
func TestWithinIsUniform(t *testing.T) {
	const n, groups = 4, 4000
	var b Batch
	for q := range groups {
		b.Groups = append(b.Groups, ladder(fmt.Sprint(q), n))
	}
	r := shape(t, shaper(t, func(s *Setup) { s.Options.Placebo = PlaceboWithin }), b)
	plain := shape(t, shaper(t, nil), batchOf(b.Groups...))
	var counts [n][n]float64
	for q := range groups {
		own := column(plain, q, pickOmega)
		for i, x := range column(r, q, pickOmega) {
			counts[i][slices.Index(own, x)]++
		}
	}
	chi := 0.0
	for i := range n {
		for j := range n {
			chi += math.Pow(counts[i][j]-groups/n, 2) / (groups / n)
		}
	}
	// 9 degrees of freedom: 27.9 is the 0.1 % point; the seed is fixed.
	if chi > 27.9 {
		t.Errorf("chi squared %v of %v", chi, counts)
	}
}

// Uncounted traces are not part of the shuffle and keep omega 0.
func TestPlacebosLeaveUncountedTracesAlone(t *testing.T) {
	g := ladder("q", 6)
	g.Traces[2].Truncated, g.Traces[4].Aborted = true, true
	for _, kind := range []Placebo{PlaceboWithin, PlaceboMean} {
		omega := placeboOmega(t, kind, 3, batchOf(g))
		if omega[2] != 0 || omega[4] != 0 {
			t.Errorf("%s gave %v", kind, omega)
		}
		for _, i := range []int{0, 5} {
			if kind == PlaceboMean && omega[i] != omega[1] {
				t.Errorf("mean gave %v", omega)
			}
		}
	}
}

// A mean placebo removes every contrast within a group, and keeps the shift.
func TestMeanKeepsOnlyTheShift(t *testing.T) {
	b := batchOf(ladder("a", 4), ladder("b", 6))
	r := shape(t, shaper(t, func(s *Setup) { s.Options.Placebo, s.Options.Norm = PlaceboMean, ZScore }), b)
	for q := range b.Groups {
		omega := column(r, q, pickOmega)
		for _, x := range omega {
			near(t, "omega", x, omega[0], 0)
		}
	}
	if u := column(r, 0, pickU); u[0] == u[1] {
		t.Errorf("u was replaced as well: %v", u)
	}
}

// Placebos change neither A nor tau: only what is done with them.
func TestPlacebosChangeOmegaAlone(t *testing.T) {
	b := batchOf(ladder("a", 4), ladder("b", 6))
	want := shape(t, shaper(t, nil), b)
	for _, kind := range []Placebo{PlaceboWithin, PlaceboMean} {
		got := shape(t, shaper(t, func(s *Setup) { s.Options.Placebo = kind }), b)
		nears(t, "A", everything(got, pickA), everything(want, pickA), 0)
		nears(t, "u", everything(got, pickU), everything(want, pickU), 0)
		if got.NextTau != want.NextTau || got.NextSigma != want.NextSigma || !reflect.DeepEqual(got.ShadowRules, want.ShadowRules) {
			t.Errorf("%s moved the threshold", kind)
		}
	}
}
