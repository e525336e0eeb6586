package uadt

import (
	"math"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// What the shaped advantages must not depend on: the units of entropy and
// reward, the sign convention of the reward, traces that nobody scored.

// drawPlain draws a batch of scored traces with H well apart from each other.
func drawPlain(t *rapid.T) Batch {
	var b Batch
	for q := range rapid.IntRange(1, 4).Draw(t, "groups") {
		n := rapid.IntRange(2, 6).Draw(t, "traces")
		rewards := make([]float64, n)
		h := make([]float64, n)
		for i := range rewards {
			rewards[i] = float64(rapid.IntRange(0, 4).Draw(t, "reward")) / 4
			h[i] = float64(rapid.IntRange(1, 30).Draw(t, "H")) / 10
		}
		b.Groups = append(b.Groups, group(string(rune('a'+q)), rewards, h))
	}
	return b
}

// changed returns a copy of b with every trace changed.
func changed(b Batch, change func(*Trace)) Batch {
	b = cloneBatch(b)
	for q := range b.Groups {
		for i := range b.Groups[q].Traces {
			change(&b.Groups[q].Traces[i])
		}
	}
	return b
}

// course shapes batches in order and returns the last result.
func course(t tb, s *Shaper, batches ...Batch) Result {
	t.Helper()
	var r Result
	for _, b := range batches {
		r = shape(t, s, b)
	}
	return r
}

func TestUnitsOfEntropy(t *testing.T) {
	for _, c := range []struct {
		norm          Norm
		scale, offset float64
	}{{Rel, 3.5, 0}, {ZScore, 0.25, 1.5}, {Diff, 1, 0.75}} {
		t.Run(string(c.norm), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				first, second := drawPlain(t), drawPlain(t)
				// A spread below the floor is not in units: widen it.
				first.Groups[0].Traces[0].H += 5
				convert := func(x *Trace) { x.H = c.scale*x.H + c.offset }
				make := func() *Shaper {
					return shaper(t, func(s *Setup) { s.Options.Norm, s.Options.Gamma = c.norm, Gamma{Value: 0.7} })
				}
				want := course(t, make(), first, second)
				got := course(t, make(), changed(first, convert), changed(second, convert))
				nears(t, "omega", everything(got, pickOmega), everything(want, pickOmega), 1e-9)
				nears(t, "A'", everything(got, pickShaped), everything(want, pickShaped), 1e-9)
			})
		})
	}
}

// With eps 0 the baseline grpo knows no units of reward; dr_grpo and rloo carry
// their scale, and none an offset. The rules are homogeneous in A, c3 with a
// bound only where the bound acts, so it is left out.
func TestUnitsOfReward(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		batch := drawPlain(t)
		const scale, offset = 8, -3
		baseline := rapid.SampledFrom([]Baseline{GRPO, DrGRPO, RLOO}).Draw(t, "baseline")
		rule := rapid.SampledFrom([]string{"none", "c1", "c2", "c4"}).Draw(t, "rule")
		recenter := rapid.Bool().Draw(t, "recenter")
		make := func(minStd float64) *Shaper {
			return shaper(t, func(s *Setup) {
				s.Options.Rule, s.Options.Recenter = rule, recenter
				s.Advantage = AdvantageOptions{Advantage: baseline, Eps: 0, MinStd: minStd}
			})
		}
		want := everything(shape(t, make(1e-3), batch), pickShaped)
		scaled := changed(batch, func(x *Trace) { x.Reward = scale*x.Reward + offset })
		got := everything(shape(t, make(scale*1e-3), scaled), pickShaped)
		if baseline != GRPO {
			for i := range want {
				want[i] *= scale
			}
		}
		nears(t, "A'", got, want, 1e-9)
	})
}

// Paying in losses instead of gains turns every advantage round: c2 follows, and
// c1 and c4 change places, which is what makes c4 the control of c1.
func TestRewardsTurnedRound(t *testing.T) {
	mirror := map[string]string{"none": "none", "c1": "c4", "c2": "c2", "c4": "c1"}
	rapid.Check(t, func(t *rapid.T) {
		batch := drawPlain(t)
		rule := rapid.SampledFrom([]string{"none", "c1", "c2", "c4"}).Draw(t, "rule")
		recenter, rescale := rapid.Bool().Draw(t, "recenter"), rapid.Bool().Draw(t, "rescale")
		under := func(rule string) *Shaper {
			return shaper(t, func(s *Setup) {
				s.Options.Rule, s.Options.Recenter, s.Options.Rescale = rule, recenter, rescale
			})
		}
		want := everything(shape(t, under(mirror[rule]), batch), pickShaped)
		for i := range want {
			want[i] = -want[i]
		}
		turned := changed(batch, func(x *Trace) { x.Reward = -x.Reward })
		nears(t, "A'", everything(shape(t, under(rule), turned), pickShaped), want, 1e-9)
	})
}

// A trace without a reward, with no entropy to count, is as good as not there.
func TestUnscoredTracesAreAsGoodAsAbsent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		batch := drawPlain(t)
		setup := drawSetup(t)
		setup.Options.Truncated = Exclude
		if setup.Options.Placebo == PlaceboWithin { // draws among the traces that are there
			setup.Options.Placebo = PlaceboOff
		}
		more := cloneBatch(batch)
		for q := range more.Groups {
			g := &more.Groups[q]
			for range rapid.IntRange(0, 3).Draw(t, "unscored") {
				x := Trace{Reward: math.NaN(), Missing: true, Truncated: true, Length: 9, H: 2}
				if rapid.Bool().Draw(t, "aborted") {
					x = Trace{Reward: 1, Aborted: true, Length: 3, H: 2}
				}
				g.Traces = append(g.Traces, x)
			}
		}
		one, err := NewShaper(setup)
		if err != nil {
			t.Fatalf("setup: %v", err)
		}
		two, err := NewShaper(setup)
		if err != nil {
			t.Fatalf("setup: %v", err)
		}
		want, got := shape(t, one, batch), shape(t, two, more)
		for q, g := range want.Groups {
			for i, x := range g.Traces {
				y := got.Groups[q].Traces[i]
				if x.A != y.A || x.Omega != y.Omega || math.Abs(x.Shaped-y.Shaped) > 1e-12 {
					t.Fatalf("group %d trace %d: %+v alone, %+v in company", q, i, x, y)
				}
			}
			for _, y := range got.Groups[q].Traces[len(g.Traces):] {
				if y.A != 0 || y.Omega != 0 || y.Shaped != 0 {
					t.Fatalf("group %d: an unscored trace has %+v", q, y)
				}
			}
		}
		if !reflect.DeepEqual(one.State(), two.State()) {
			t.Fatalf("state %+v, want %+v", two.State(), one.State())
		}
	})
}
