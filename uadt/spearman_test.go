package uadt

import (
	"math"
	"testing"

	"gonum.org/v1/gonum/stat"
	"pgregory.net/rapid"
)

func TestRanks(t *testing.T) {
	for _, c := range []struct{ x, want []float64 }{
		{nil, []float64{}},
		{[]float64{5}, []float64{1}},
		{[]float64{30, 10, 20}, []float64{3, 1, 2}},
		{[]float64{1, 2, 2, 3}, []float64{1, 2.5, 2.5, 4}},
		{[]float64{7, 7, 7}, []float64{2, 2, 2}},
		{[]float64{0, -1, 0, -1}, []float64{3.5, 1.5, 3.5, 1.5}},
	} {
		nears(t, "ranks", ranks(c.x), c.want, 0)
	}
}

// Intelligence and television, the textbook example: rho = -29/165.
func TestSpearmanWorkedExample(t *testing.T) {
	iq := []float64{106, 100, 86, 101, 99, 103, 97, 113, 112, 110}
	tv := []float64{7, 27, 2, 50, 28, 29, 20, 12, 6, 17}
	rho, ok := Spearman(iq, tv)
	if !ok {
		t.Fatal("absent")
	}
	near(t, "rho", rho, -29.0/165, 1e-12)
}

func TestSpearmanIsAbsent(t *testing.T) {
	ten := []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	flat := make([]float64, 10)
	for name, c := range map[string]struct{ x, y []float64 }{
		"nothing":        {nil, nil},
		"nine pairs":     {ten[:9], ten[:9]},
		"constant x":     {flat, ten},
		"constant y":     {ten, flat},
		"lengths differ": {ten, ten[:9]},
	} {
		if rho, ok := Spearman(c.x, c.y); ok {
			t.Errorf("%s: %v, want it absent", name, rho)
		}
	}
}

func drawPairs(t *rapid.T) (x, y []float64) {
	n := rapid.IntRange(minPairs, 60).Draw(t, "n")
	value := rapid.Map(rapid.IntRange(-12, 12), func(i int) float64 { return float64(i) / 4 }) // many ties
	return rapid.SliceOfN(value, n, n).Draw(t, "x"), rapid.SliceOfN(value, n, n).Draw(t, "y")
}

// Against Pearson of the ranks by gonum, and by definition of a mean rank.
func TestSpearmanAgainstDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x, y := drawPairs(t)
		rank := func(v []float64) []float64 {
			out := make([]float64, len(v))
			for i := range v {
				below, same := 0.0, 0.0
				for j := range v {
					below += indicator(v[j] < v[i])
					same += indicator(v[j] == v[i])
				}
				out[i] = below + (same+1)/2
			}
			return out
		}
		rho, ok := Spearman(x, y)
		want := stat.Correlation(rank(x), rank(y), nil)
		if !ok {
			if !math.IsNaN(want) {
				t.Fatalf("absent, want %v", want)
			}
			return
		}
		near(t, "rho", rho, want, 1e-12)
	})
}

func TestSpearmanInvariances(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x, y := drawPairs(t)
		rho, ok := Spearman(x, y)
		swapped, okSwapped := Spearman(y, x)
		stretched := make([]float64, len(x))
		for i, v := range x {
			stretched[i] = math.Exp(v) * 3
		}
		grown, okGrown := Spearman(stretched, y)
		if ok != okSwapped || ok != okGrown {
			t.Fatalf("present %v, %v, %v", ok, okSwapped, okGrown)
		}
		if !ok {
			return
		}
		near(t, "rho of the swapped", swapped, rho, 1e-12)
		near(t, "rho of a monotone function", grown, rho, 1e-12)
		if math.Abs(rho) > 1 {
			t.Fatalf("rho %v", rho)
		}
		if self, okSelf := Spearman(x, x); okSelf {
			near(t, "rho with itself", self, 1, 1e-12)
		}
	})
}

func TestPairs(t *testing.T) {
	var p pairs
	p.add(nil, nil)
	p.add([]float64{5}, []float64{7}) // a lone pair has nothing within
	p.add([]float64{1, 3}, []float64{10, 20})
	nears(t, "within H", p.withinH, []float64{-1, 1}, 0)
	nears(t, "within y", p.withinY, []float64{-5, 5}, 0)
	nears(t, "between H", p.betweenH, []float64{5, 2}, 0)
	nears(t, "between y", p.betweenY, []float64{7, 15}, 0)
	metrics := map[string]float64{}
	p.report(metrics, "x")
	if len(metrics) != 0 {
		t.Errorf("too few pairs were reported: %v", metrics)
	}
}
