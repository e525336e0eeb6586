package evaluate

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Method names how an interval was made.
type Method string

// The methods.
const (
	Wilson    Method = "wilson"            // score interval of a proportion; independent 0/1 answers only
	Bootstrap Method = "cluster_bootstrap" // percentiles over resampled clusters
)

// Estimate is a mean with its 95 % interval.
type Estimate struct {
	Value  float64 `json:"value"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	N      int     `json:"n"` // records
	Method Method  `json:"method"`
}

// z95 is the 97.5 % quantile of the normal distribution.
const z95 = 1.959963984540054

// wilson is the score interval of Wilson (1927) for right of n:
// (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).
// Unlike p ± z·se it stays in [0, 1] and is right at p = 0 and p = 1.
func wilson(right, n int) (low, high float64) {
	p, count := float64(right)/float64(n), float64(n)
	centre := p + z95*z95/(2*count)
	half := z95 * math.Sqrt(p*(1-p)/count+z95*z95/(4*count*count))
	scale := 1 + z95*z95/count
	low, high = max(0, (centre-half)/scale), min(1, (centre+half)/scale)
	switch right { // exactly, not up to rounding
	case 0:
		low = 0
	case n:
		high = 1
	}
	return low, high
}

// item is one record's contribution to a mean: value with the weight of the
// records that count for it (0 or 1).
type item struct {
	cluster string
	value   float64
}

// estimate is the mean over items and its interval: Wilson's when every item is
// a 0/1 answer of its own cluster and single says that there was one greedy
// answer each, else percentiles of a bootstrap over clusters.
func estimate(items []item, single bool, options Options) Estimate {
	e := Estimate{N: len(items), Method: Bootstrap}
	if len(items) == 0 {
		return e
	}
	sums := map[string]*clusterSum{}
	var order []*clusterSum // in order of appearance: the resampling must not depend on a map
	total, binary := 0.0, true
	for _, i := range items {
		c := sums[i.cluster]
		if c == nil {
			c = &clusterSum{}
			sums[i.cluster] = c
			order = append(order, c)
		}
		c.sum += i.value
		c.n++
		total += i.value
		binary = binary && (i.value == 0 || i.value == 1)
	}
	e.Value = total / float64(len(items))
	if single && binary && len(order) == len(items) {
		e.Method = Wilson
		e.Low, e.High = wilson(int(total), len(items))
		return e
	}
	e.Low, e.High = bootstrap(order, options)
	return e
}

// clusterSum is the sum of the values of n records that depend on one another.
type clusterSum struct {
	sum float64
	n   int
}

// bootstrap resamples whole clusters with replacement and takes the 2.5 % and
// 97.5 % quantiles of the ratio of sums. Resampling records would take those of
// one image for independent and give intervals that are too short.
func bootstrap(clusters []*clusterSum, options Options) (low, high float64) {
	rng := rand.New(rand.NewPCG(options.Seed, uint64(len(clusters))))
	means := make([]float64, options.Resamples)
	for i := range means {
		sum, n := 0.0, 0
		for range clusters {
			c := clusters[rng.IntN(len(clusters))]
			sum += c.sum
			n += c.n
		}
		means[i] = sum / float64(n)
	}
	slices.Sort(means)
	return quantile(means, 0.025), quantile(means, 0.975)
}

// quantile interpolates between the order statistics of sorted.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	below := int(at)
	if below+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[below] + (at-float64(below))*(sorted[below+1]-sorted[below])
}
