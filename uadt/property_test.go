package uadt

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// drawTrace draws anything that a rollout may bring.
func drawTrace(t *rapid.T) Trace {
	x := Trace{
		Reward:    rapid.SampledFrom([]float64{0, 0, 0.1, 0.5, 1, 1, 1.1}).Draw(t, "reward"),
		Missing:   rapid.IntRange(0, 9).Draw(t, "missing") == 0,
		Truncated: rapid.IntRange(0, 5).Draw(t, "truncated") == 0,
		Aborted:   rapid.IntRange(0, 19).Draw(t, "aborted") == 0,
		Length:    rapid.IntRange(0, 12).Draw(t, "length"),
		H:         rapid.Float64Range(0, 3).Draw(t, "H"),
	}
	x.Correct = x.Reward >= 1 && !x.Missing
	if rapid.Bool().Draw(t, "tokens") {
		x.Entropies = rapid.SliceOfN(rapid.Float32Range(0, 4), x.Length, x.Length).Draw(t, "entropies")
		if rapid.Bool().Draw(t, "thinks") {
			x.Span = rapid.SliceOfN(rapid.Bool(), x.Length, x.Length).Draw(t, "span")
		}
	}
	return x
}

// drawBatch draws groups of different sizes.
func drawBatch(t *rapid.T) Batch {
	var b Batch
	for q := range rapid.IntRange(1, 5).Draw(t, "groups") {
		b.Groups = append(b.Groups, Group{
			ID:     fmt.Sprintf("job-%d", q),
			Traces: rapid.SliceOfN(rapid.Custom(drawTrace), 1, 8).Draw(t, "traces"),
		})
	}
	return b
}

// drawSetup draws any valid setup.
func drawSetup(t *rapid.T) Setup {
	s := Setup{Options: DefaultOptions(), Advantage: DefaultAdvantageOptions(), StageSteps: rapid.IntRange(1, 100).Draw(t, "stage")}
	o := &s.Options
	o.Rule = rapid.SampledFrom(ruleNames()).Draw(t, "rule")
	o.Norm = rapid.SampledFrom([]Norm{Diff, Rel, ZScore}).Draw(t, "norm")
	o.Level = rapid.SampledFrom([]Level{LevelTrace, LevelGroup}).Draw(t, "level")
	o.Truncated = rapid.SampledFrom([]Truncated{Include, Exclude}).Draw(t, "truncated")
	o.Placebo = rapid.SampledFrom([]Placebo{PlaceboOff, PlaceboOff, PlaceboWithin, PlaceboMean}).Draw(t, "placebo")
	o.Update = rapid.SampledFrom([]Update{UpdateAfter, UpdateBefore}).Draw(t, "update")
	o.Recenter, o.Rescale = rapid.Bool().Draw(t, "recenter"), rapid.Bool().Draw(t, "rescale")
	o.Kappa = rapid.SampledFrom([]float64{0, 1, 2, 4}).Draw(t, "kappa")
	o.Gamma = Gamma{Value: rapid.Float64Range(0, 1).Draw(t, "gamma")}
	o.Lambda = Constant(rapid.Float64Range(0, 0.99).Draw(t, "lambda"))
	o.Gain = Constant(rapid.Float64Range(0, 3).Draw(t, "gain"))
	s.Advantage.Advantage = drawBaseline(t)
	s.Seed = int64(rapid.IntRange(0, 1000).Draw(t, "seed"))
	return s
}

// shapeTwice shapes a first batch for the threshold and then batch.
func shapeTwice(t *rapid.T, setup Setup, first, batch Batch) Result {
	s, err := NewShaper(setup)
	if err != nil {
		t.Fatalf("setup: %v", err)
	}
	shape(t, s, first)
	return shape(t, s, batch)
}

func drawCase(t *rapid.T) (Setup, Batch, Batch) {
	return drawSetup(t), rapid.Custom(drawBatch).Draw(t, "first"), rapid.Custom(drawBatch).Draw(t, "batch")
}

func TestShapeIsDeterministicAndPure(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup, first, batch := drawCase(t)
		before := cloneBatch(batch)
		one, two := shapeTwice(t, setup, first, batch), shapeTwice(t, setup, first, batch)
		if !reflect.DeepEqual(one, two) {
			t.Fatalf("twice the same gave\n%+v\n%+v", one, two)
		}
		if !reflect.DeepEqual(batch, before) {
			t.Fatalf("the batch was changed")
		}
	})
}

func cloneBatch(b Batch) Batch {
	var out Batch
	for _, g := range b.Groups {
		copied := Group{ID: g.ID, Traces: slices.Clone(g.Traces)}
		for i := range copied.Traces {
			copied.Traces[i].Entropies = slices.Clone(g.Traces[i].Entropies)
			copied.Traces[i].Span = slices.Clone(g.Traces[i].Span)
		}
		out.Groups = append(out.Groups, copied)
	}
	return out
}

// Zero-variance groups, missing rewards and dropped traces have A' = 0 under
// every rule and every control.
func TestShapeZerosStayZero(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup, first, batch := drawCase(t)
		r := shapeTwice(t, setup, first, batch)
		for q, g := range r.Groups {
			for i, x := range g.Traces {
				if (!g.Informative || batch.Groups[q].Traces[i].Missing || x.Dropped != NotDropped) && (x.A != 0 || x.Shaped != 0) {
					t.Fatalf("group %d trace %d has A %v, A' %v", q, i, x.A, x.Shaped)
				}
			}
		}
	})
}

func TestShapeKeepsSigns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup, first, batch := drawCase(t)
		setup.Options.Rule = rapid.SampledFrom([]string{"none", "c1", "c2", "c4"}).Draw(t, "sign rule")
		setup.Options.Recenter = false
		r := shapeTwice(t, setup, first, batch)
		for _, g := range r.Groups {
			for _, x := range g.Traces {
				if (x.A == 0) != (x.Shaped == 0) || x.A*x.Shaped < 0 {
					t.Fatalf("%s turned %v into %v", r.Rule, x.A, x.Shaped)
				}
			}
		}
		near(t, "sign flips", r.Metrics["uadt/sign_flips"], 0, 0)
	})
}

// A constant added to every reward changes nothing.
func TestShapeShiftInvariant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup, first, batch := drawCase(t)
		shift := rapid.Float64Range(-10, 10).Draw(t, "shift")
		moved := cloneBatch(batch)
		for q := range moved.Groups {
			for i := range moved.Groups[q].Traces {
				moved.Groups[q].Traces[i].Reward += shift
			}
		}
		want, got := shapeTwice(t, setup, first, batch), shapeTwice(t, setup, first, moved)
		nears(t, "A'", everything(got, pickShaped), everything(want, pickShaped), 1e-8)
		near(t, "next tau", got.NextTau, want.NextTau, 0)
	})
}

// The order of groups, and of traces within a group, is only an order.
func TestShapeFollowsPermutation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup, first, batch := drawCase(t)
		if setup.Options.Placebo == PlaceboWithin {
			setup.Options.Placebo = PlaceboOff // a seeded shuffle follows positions
		}
		groups := rapid.Permutation(indices(len(batch.Groups))).Draw(t, "groups")
		var mixed Batch
		orders := make([][]int, len(groups))
		for to, from := range groups {
			g := batch.Groups[from]
			orders[to] = rapid.Permutation(indices(len(g.Traces))).Draw(t, "traces")
			out := Group{ID: g.ID}
			for _, i := range orders[to] {
				out.Traces = append(out.Traces, g.Traces[i])
			}
			mixed.Groups = append(mixed.Groups, out)
		}
		want, got := shapeTwice(t, setup, first, batch), shapeTwice(t, setup, first, mixed)
		for to, from := range groups {
			for j, i := range orders[to] {
				near(t, "A'", got.Groups[to].Traces[j].Shaped, want.Groups[from].Traces[i].Shaped, 1e-8)
			}
		}
		near(t, "next tau", got.NextTau, want.NextTau, 1e-12)
		for name, v := range want.Metrics {
			// Ranks of values that tie only up to rounding may swap.
			if len(name) < 9 || name[:9] != "uadt/corr" {
				near(t, name, got.Metrics[name], v, 1e-7)
			}
		}
	})
}

// A' of a group depends on that group alone when tau is updated after use and
// nothing is done over the batch: what lets advantages arrive late.
func TestShapeOfAGroupIsItsOwn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup, first, batch := drawCase(t)
		setup.Options.Update, setup.Options.Recenter, setup.Options.Rescale = UpdateAfter, false, false
		s, err := NewShaper(setup)
		if err != nil {
			t.Fatalf("setup: %v", err)
		}
		shape(t, s, first)
		if !s.State().Seeded {
			return // the first counted batch seeds tau, and then it depends on all
		}
		state := s.State()
		whole := shape(t, s, batch)
		for q, g := range batch.Groups {
			if err := s.Restore(state); err != nil {
				t.Fatalf("restore: %v", err)
			}
			alone := shape(t, s, batchOf(g))
			nears(t, "A'", column(alone, 0, pickShaped), column(whole, q, pickShaped), 0)
		}
	})
}

func TestShapeRuleNoneIsTheBaseline(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup, first, batch := drawCase(t)
		setup.Options.Rule, setup.Options.Recenter, setup.Options.Rescale = "none", false, false
		r := shapeTwice(t, setup, first, batch)
		nears(t, "A'", everything(r, pickShaped), everything(r, pickA), 0)
		for _, g := range r.Groups {
			sum := 0.0
			for _, x := range g.Traces {
				sum += x.Shaped
			}
			near(t, "sum of a group", sum, 0, 1e-9)
		}
	})
}

func TestShapeOmegaIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup, first, batch := drawCase(t)
		r := shapeTwice(t, setup, first, batch)
		low := -1.0
		if setup.Options.Norm == Rel {
			low = math.Tanh(-setup.Options.Gain.From) // u >= -1
		}
		for _, x := range everything(r, pickOmega) {
			if x < low-1e-12 || x > 1 {
				t.Fatalf("omega %v outside [%v, 1]", x, low)
			}
		}
		if !finite(r.NextTau) || r.NextTau < 0 || r.NextTau > 4 || r.NextSigma < 0 {
			t.Fatalf("next tau %v, sigma %v", r.NextTau, r.NextSigma)
		}
	})
}

func TestControls(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup, first, batch := drawCase(t)
		setup.Options.Placebo = PlaceboOff
		plain := shapeTwice(t, setup, first, batch)
		setup.Options.Placebo = PlaceboWithin
		within := shapeTwice(t, setup, first, batch)
		setup.Options.Placebo = PlaceboMean
		mean := shapeTwice(t, setup, first, batch)
		for q := range batch.Groups {
			var want, shuffled, level []float64
			for i, x := range plain.Groups[q].Traces {
				if x.Counted {
					want = append(want, x.Omega)
					shuffled = append(shuffled, within.Groups[q].Traces[i].Omega)
					level = append(level, mean.Groups[q].Traces[i].Omega)
				} else if within.Groups[q].Traces[i].Omega != 0 || mean.Groups[q].Traces[i].Omega != 0 {
					t.Fatalf("an uncounted trace got an omega")
				}
			}
			average, _ := populationMoments(want)
			for _, x := range level {
				near(t, "omega under mean", x, average, 0)
			}
			slices.Sort(want)
			slices.Sort(shuffled)
			nears(t, "omega under within, sorted", shuffled, want, 0)
		}
	})
}
