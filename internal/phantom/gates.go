package phantom

import (
	"fmt"
	"math"
	"strings"
)

// Sampled is what the gates need to know of one sampled trace.
type Sampled struct {
	Tokens  int     // sampled tokens, end of sequence included
	Entropy float64 // mean token entropy, nats
	Reward  float64 // total reward
	Correct bool
}

// SampledGroup is the traces of one question.
type SampledGroup struct {
	Hard   bool // see [Item]
	Traces []Sampled
}

// Gates are the four numbers that say whether the task needs depth under a
// given policy, measured on the groups of the first RL step.
type Gates struct {
	// EntropySD is the standard deviation (population) of the traces' mean token
	// entropy within a group, averaged over groups, nats.
	EntropySD float64
	// Informative is the share of groups whose rewards differ.
	Informative float64
	// LengthCV is the standard deviation of trace lengths over their mean.
	LengthCV float64
	// LongMinusShort is the share of right answers among the hard questions'
	// traces that are longer than their mean length, minus that among the
	// others; NaN if either kind is missing.
	LongMinusShort float64
}

// The least that each gate must show.
const (
	MinEntropySD      = 0.05
	MinInformative    = 0.40
	MinLengthCV       = 0.20
	MinLongMinusShort = 0.10
)

// minSpread is the standard deviation of rewards below which a group teaches
// nothing.
const minSpread = 1e-3

// Measure computes the gates. Groups without traces are left out.
func Measure(groups []SampledGroup) Gates {
	var g Gates
	var lengths, hardLengths []float64
	n := 0.0
	for _, group := range groups {
		if len(group.Traces) == 0 {
			continue
		}
		n++
		var entropies, rewards []float64
		for _, t := range group.Traces {
			entropies, rewards = append(entropies, t.Entropy), append(rewards, t.Reward)
			lengths = append(lengths, float64(t.Tokens))
			if group.Hard {
				hardLengths = append(hardLengths, float64(t.Tokens))
			}
		}
		_, sd := meanSD(entropies)
		g.EntropySD += sd
		if _, sd := meanSD(rewards); sd >= minSpread {
			g.Informative++
		}
	}
	g.EntropySD /= n
	g.Informative /= n
	mean, sd := meanSD(lengths)
	g.LengthCV = sd / mean
	g.LongMinusShort = longMinusShort(groups, hardLengths)
	return g
}

// longMinusShort compares accuracies on either side of the mean length.
func longMinusShort(groups []SampledGroup, lengths []float64) float64 {
	mean, _ := meanSD(lengths)
	var right, count [2]float64
	for _, group := range groups {
		if !group.Hard {
			continue
		}
		for _, t := range group.Traces {
			side := 0
			if float64(t.Tokens) > mean {
				side = 1
			}
			count[side]++
			if t.Correct {
				right[side]++
			}
		}
	}
	return right[1]/count[1] - right[0]/count[0]
}

// meanSD is mean and population standard deviation; NaN for none.
func meanSD(values []float64) (mean, sd float64) {
	n := float64(len(values))
	for _, v := range values {
		mean += v / n
	}
	if n == 0 {
		return math.NaN(), math.NaN()
	}
	for _, v := range values {
		sd += (v - mean) * (v - mean) / n
	}
	return mean, math.Sqrt(sd)
}

// Check fails with a line for each gate that is not reached.
func (g Gates) Check() error {
	var short []string
	for _, r := range g.rows() {
		if !(r.value >= r.least) { // NaN fails
			short = append(short, fmt.Sprintf("%s is %.3f, want at least %.2f", r.name, r.value, r.least))
		}
	}
	if short == nil {
		return nil
	}
	return fmt.Errorf("phantom: the task does not need depth under this policy: %s", strings.Join(short, "; "))
}

// String is a table of the gates, one a line.
func (g Gates) String() string {
	var b strings.Builder
	for _, r := range g.rows() {
		fmt.Fprintf(&b, "%-44s %6.3f  (at least %.2f)\n", r.name, r.value, r.least)
	}
	return b.String()
}

type gateRow struct {
	name         string
	value, least float64
}

func (g Gates) rows() []gateRow {
	return []gateRow{
		{"SD of entropy within groups, nats", g.EntropySD, MinEntropySD},
		{"share of informative groups", g.Informative, MinInformative},
		{"coefficient of variation of length", g.LengthCV, MinLengthCV},
		{"long minus short accuracy on hard questions", g.LongMinusShort, MinLongMinusShort},
	}
}
