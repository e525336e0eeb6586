package evaluate

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if math.Abs(got-want) > tolerance {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

// TestWilson: published values of the score interval.
func TestWilson(t *testing.T) {
	for _, c := range []struct {
		right, n  int
		low, high float64
	}{
		{8, 10, 0.490162, 0.943318}, {0, 10, 0, 0.277533}, {10, 10, 0.722467, 1}, {15, 148, 0.0624, 0.1605}, {1, 1, 0.206543, 1},
	} {
		low, high := wilson(c.right, c.n)
		near(t, fmt.Sprintf("low of %d/%d", c.right, c.n), low, c.low, 6e-5)
		near(t, fmt.Sprintf("high of %d/%d", c.right, c.n), high, c.high, 6e-5)
	}
}

func TestWhichInterval(t *testing.T) {
	o := Options{Resamples: 200}
	independent := []item{{"a", 1}, {"b", 0}, {"c", 1}}
	for name, c := range map[string]struct {
		items  []item
		single bool
		want   Method
	}{
		"one greedy answer per image": {independent, true, Wilson},
		"sampled":                     {independent, false, Bootstrap},
		"two records of one image":    {append(independent, item{"a", 1}), true, Bootstrap},
		"shares, not answers":         {append(independent, item{"d", 0.5}), true, Bootstrap},
	} {
		e := estimate(c.items, c.single, o)
		if e.Method != c.want || e.N != len(c.items) || e.Low > e.Value || e.High < e.Value {
			t.Errorf("%s: %+v, want %s", name, e, c.want)
		}
	}
	if e := estimate(nil, true, o); e.N != 0 || e.Value != 0 || e.Low != 0 || e.High != 0 {
		t.Errorf("nothing: %+v", e)
	}
}

// TestClustersWiden: the same answers seen five times each are no more
// evidence, and taking them for independent would say so.
func TestClustersWiden(t *testing.T) {
	o := Options{Resamples: 2000, Seed: 1}
	rng := rand.New(rand.NewPCG(3, 4))
	var once, clustered, naive []item
	for i := range 60 {
		v := indicator(rng.IntN(2) == 0)
		once = append(once, item{fmt.Sprint(i), v})
		for j := range 5 {
			clustered = append(clustered, item{fmt.Sprint(i), v})
			naive = append(naive, item{fmt.Sprint(i, "-", j), v})
		}
	}
	width := func(items []item) float64 { e := estimate(items, false, o); return e.High - e.Low }
	near(t, "width of the clustered over the single", width(clustered)/width(once), 1, 0.1)
	near(t, "width of the naive over the single", width(naive)/width(once), 1/math.Sqrt(5), 0.1)
}

// TestBootstrapCoverage: about 95 of 100 intervals hold the true share.
func TestBootstrapCoverage(t *testing.T) {
	const runs, records, truth = 200, 60, 0.3
	rng := rand.New(rand.NewPCG(5, 6))
	held := 0
	for run := range runs {
		var items []item
		for i := range records {
			items = append(items, item{fmt.Sprint(i), indicator(rng.Float64() < truth)})
		}
		e := estimate(items, false, Options{Resamples: 200, Seed: uint64(run)})
		held += int(indicator(e.Low <= truth && truth <= e.High))
	}
	if share := float64(held) / runs; share < 0.90 || share > 0.99 {
		t.Errorf("%.1f %% of the intervals hold the truth, want about 95 %%", 100*share)
	}
}

func TestPassAtK(t *testing.T) {
	near(t, "1 of 4, k 2", passAtK(4, 1, 2), 0.5, 1e-12)
	near(t, "2 of 4, k 2", passAtK(4, 2, 2), 5.0/6, 1e-12)
	near(t, "0 of 4, k 4", passAtK(4, 0, 4), 0, 0)
	near(t, "1 of 4, k 4", passAtK(4, 1, 4), 1, 0)
	if got := fmt.Sprint(ks(1), ks(5), ks(8)); got != "[1] [1 2 4 5] [1 2 4 8]" {
		t.Errorf("ks are %s", got)
	}
	rapid.Check(t, func(t *rapid.T) { // against counting every subset
		n := rapid.IntRange(1, 10).Draw(t, "n")
		right, k := rapid.IntRange(0, n).Draw(t, "right"), rapid.IntRange(1, n).Draw(t, "k")
		subsets, hits := 0, 0
		for mask := range 1 << n {
			size, hit := 0, false
			for i := range n {
				if mask>>i&1 == 1 {
					size++
					hit = hit || i < right
				}
			}
			if size == k {
				subsets++
				hits += int(indicator(hit))
			}
		}
		if want := float64(hits) / float64(subsets); math.Abs(passAtK(n, right, k)-want) > 1e-12 {
			t.Fatalf("pass@%d of %d with %d right is %v, want %v", k, n, right, passAtK(n, right, k), want)
		}
	})
}
