package uadt

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// The worked numbers of the specification: r = [1, 0.5, 0, 1, 0.5].
func TestAdvantagesWorkedNumbers(t *testing.T) {
	rewards := []float64{1, 0.5, 0, 1, 0.5}
	mean, std := sampleMoments(rewards)
	near(t, "mean", mean, 0.6, 1e-15)
	near(t, "std", std, 0.418330013, 1e-9)
	for _, c := range []struct {
		name     string
		baseline Baseline
		eps      float64
		want     []float64
	}{
		{"grpo eps 1e-6", GRPO, 1e-6, []float64{0.956180602, -0.239045150, -1.434270903, 0.956180602, -0.239045150}},
		{"grpo eps 1e-4", GRPO, 1e-4, []float64{0.955954371, -0.238988593, -1.433931556, 0.955954371, -0.238988593}},
		{"rloo", RLOO, 1e-6, []float64{0.5, -0.125, -0.75, 0.5, -0.125}},
		{"dr_grpo", DrGRPO, 1e-6, []float64{0.4, -0.1, -0.6, 0.4, -0.1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Advantages(c.baseline, c.eps, rewards)
			if err != nil {
				t.Fatal(err)
			}
			nears(t, "A", got, c.want, 1e-9)
		})
	}
}

func TestAdvantagesOfFewRewards(t *testing.T) {
	for _, rewards := range [][]float64{nil, {}, {3}} {
		for _, b := range []Baseline{GRPO, DrGRPO, RLOO} {
			got, err := Advantages(b, 1e-6, rewards)
			if err != nil {
				t.Fatalf("%s of %v: %v", b, rewards, err)
			}
			nears(t, string(b), got, make([]float64, len(rewards)), 0)
		}
	}
}

func TestAdvantagesRefuse(t *testing.T) {
	for name, rewards := range map[string][]float64{
		"NaN":  {1, math.NaN()},
		"+Inf": {math.Inf(1), 0},
		"-Inf": {0, 0, math.Inf(-1)},
	} {
		for _, b := range []Baseline{GRPO, DrGRPO, RLOO} {
			if got, err := Advantages(b, 1e-6, rewards); err == nil {
				t.Errorf("%s with %s: got %v, want an error", b, name, got)
			}
		}
	}
	if got, err := Advantages("mean", 1e-6, []float64{0, 1}); err == nil {
		t.Errorf("unknown baseline: got %v, want an error", got)
	}
	if got, err := Advantages(GRPO, 0, []float64{1, 1}); err == nil {
		t.Errorf("std 0 and eps 0: got %v, want an error", got)
	}
}

// Rewards on a large offset keep their digits, because the mean is subtracted
// before squaring.
func TestAdvantagesOnAnOffset(t *testing.T) {
	got, err := Advantages(GRPO, 0, []float64{1e8 + 1, 1e8 - 1})
	if err != nil {
		t.Fatal(err)
	}
	nears(t, "A", got, []float64{math.Sqrt(0.5), -math.Sqrt(0.5)}, 1e-12)
}

// rewards draws a group whose rewards are not all equal.
func drawRewards(t *rapid.T) []float64 {
	r := rapid.SliceOfN(rapid.Float64Range(-4, 4), 2, 16).Draw(t, "rewards")
	if _, std := sampleMoments(r); std < 1e-3 {
		r[0] += 1
	}
	return r
}

func drawBaseline(t *rapid.T) Baseline {
	return rapid.SampledFrom([]Baseline{GRPO, DrGRPO, RLOO}).Draw(t, "baseline")
}

func mustAdvantages(t *rapid.T, b Baseline, r []float64) []float64 {
	a, err := Advantages(b, 1e-6, r)
	if err != nil {
		t.Fatalf("advantages of %v: %v", r, err)
	}
	return a
}

func TestAdvantagesSumToZero(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := mustAdvantages(t, drawBaseline(t), drawRewards(t))
		sum, size := 0.0, 0.0
		for _, x := range a {
			sum += x
			size += math.Abs(x)
		}
		near(t, "sum", sum, 0, 1e-11*(1+size))
		if size == 0 {
			t.Errorf("rewards that differ gave only zeros")
		}
	})
}

func TestAdvantagesShiftInvariant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, r := drawBaseline(t), drawRewards(t)
		shift := rapid.Float64Range(-100, 100).Draw(t, "shift")
		moved := make([]float64, len(r))
		for i := range r {
			moved[i] = r[i] + shift
		}
		nears(t, "A of shifted rewards", mustAdvantages(t, b, moved), mustAdvantages(t, b, r), 1e-8)
	})
}

func TestAdvantagesFollowPermutation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, r := drawBaseline(t), drawRewards(t)
		order := rapid.Permutation(indices(len(r))).Draw(t, "order")
		mixed := make([]float64, len(r))
		for i, from := range order {
			mixed[i] = r[from]
		}
		plain, permuted := mustAdvantages(t, b, r), mustAdvantages(t, b, mixed)
		for i, from := range order {
			near(t, "A of the permuted group", permuted[i], plain[from], 1e-9)
		}
	})
}

func TestAdvantagesScale(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRewards(t)
		scale := rapid.Float64Range(0.1, 10).Draw(t, "scale")
		scaled := make([]float64, len(r))
		for i := range r {
			scaled[i] = scale * r[i]
		}
		// grpo forgets the scale up to eps; the others keep it.
		nears(t, "grpo", mustAdvantages(t, GRPO, scaled), mustAdvantages(t, GRPO, r), 5e-2)
		for _, b := range []Baseline{DrGRPO, RLOO} {
			want := mustAdvantages(t, b, r)
			for i := range want {
				want[i] *= scale
			}
			nears(t, string(b), mustAdvantages(t, b, scaled), want, 1e-10)
		}
	})
}

// rloo is the reward less the mean of the others: another way to compute it.
func TestRLOOLeavesOneOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRewards(t)
		got := mustAdvantages(t, RLOO, r)
		for i := range r {
			others := 0.0
			for j := range r {
				if j != i {
					others += r[j]
				}
			}
			near(t, "A", got[i], r[i]-others/float64(len(r)-1), 1e-11)
		}
	})
}

func TestAdvantagesOrderLikeRewards(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, r := drawBaseline(t), drawRewards(t)
		a := mustAdvantages(t, b, r)
		for i := range r {
			for j := range r {
				if r[i] > r[j] && a[i] < a[j] {
					t.Fatalf("reward %v > %v but A %v < %v", r[i], r[j], a[i], a[j])
				}
			}
		}
	})
}

func TestMoments(t *testing.T) {
	for _, c := range []struct {
		x                        []float64
		mean, sample, population float64
	}{
		{nil, 0, 0, 0},
		{[]float64{5}, 5, 0, 0},
		{[]float64{1, 3}, 2, math.Sqrt2, 1},
		{[]float64{2, 4, 4, 4, 5, 5, 7, 9}, 5, math.Sqrt(32.0 / 7), 2},
	} {
		mean, sample := sampleMoments(c.x)
		again, population := populationMoments(c.x)
		near(t, "mean", mean, c.mean, 1e-15)
		near(t, "mean", again, c.mean, 1e-15)
		near(t, "sample SD", sample, c.sample, 1e-15)
		near(t, "population SD", population, c.population, 1e-15)
	}
}

func indices(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}
