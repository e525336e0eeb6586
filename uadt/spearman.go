package uadt

import (
	"math"
	"slices"

	"gonum.org/v1/gonum/floats"
)

// minPairs is the number of pairs below which no correlation is reported: the
// standard error of rho is about 1/sqrt(n-1), a third at ten.
const minPairs = 10

// Spearman returns the rank correlation of x and y, equal values sharing their
// mean rank. ok is false when there are fewer than ten pairs or when either
// side is constant.
func Spearman(x, y []float64) (rho float64, ok bool) {
	if len(x) != len(y) || len(x) < minPairs {
		return 0, false
	}
	rx, ry := ranks(x), ranks(y)
	centre(rx)
	centre(ry)
	denominator := math.Sqrt(floats.Dot(rx, rx)) * math.Sqrt(floats.Dot(ry, ry))
	if denominator == 0 {
		return 0, false
	}
	return math.Max(-1, math.Min(1, floats.Dot(rx, ry)/denominator)), true
}

// ranks returns the rank of each value, from 1, ties sharing their mean rank.
func ranks(x []float64) []float64 {
	order := make([]int, len(x))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case x[a] < x[b]:
			return -1
		case x[a] > x[b]:
			return 1
		}
		return 0
	})
	out := make([]float64, len(x))
	for from := 0; from < len(order); {
		to := from + 1
		for to < len(order) && x[order[to]] == x[order[from]] {
			to++
		}
		for _, i := range order[from:to] {
			out[i] = float64(from+to+1) / 2
		}
		from = to
	}
	return out
}

// centre subtracts the mean of x from x.
func centre(x []float64) {
	if len(x) == 0 {
		return
	}
	mean := floats.Sum(x) / float64(len(x))
	floats.AddConst(-mean, x)
}

// snap rounds to a billionth (of a nat, of a token), so that values which tie
// after centring still do: 0.7 - 0.6 and 0.5 - 0.4 differ in the last bits, and
// ranks would make an order of that.
func snap(x []float64) {
	for i, v := range x {
		x[i] = math.Round(v*1e9) / 1e9
	}
}

// pairs collects (H, other) by group for the two ways of correlating them.
type pairs struct {
	withinH, withinY   []float64 // centred by group; groups of one pair are left out
	betweenH, betweenY []float64 // group means
}

// add takes in the pairs of one group. It changes h and y.
func (p *pairs) add(h, y []float64) {
	if len(h) == 0 {
		return
	}
	p.betweenH = append(p.betweenH, floats.Sum(h)/float64(len(h)))
	p.betweenY = append(p.betweenY, floats.Sum(y)/float64(len(y)))
	if len(h) < 2 {
		return
	}
	centre(h)
	centre(y)
	snap(h)
	snap(y)
	p.withinH = append(p.withinH, h...)
	p.withinY = append(p.withinY, y...)
}

// report writes prefix_within and prefix_between, each with its n beside it.
func (p *pairs) report(metrics map[string]float64, prefix string) {
	if rho, ok := Spearman(p.withinH, p.withinY); ok {
		metrics[prefix+"_within"] = rho
		metrics[prefix+"_within_n"] = float64(len(p.withinH))
	}
	if rho, ok := Spearman(p.betweenH, p.betweenY); ok {
		metrics[prefix+"_between"] = rho
		metrics[prefix+"_between_n"] = float64(len(p.betweenH))
	}
}
