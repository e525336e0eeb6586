package uadt

import (
	"math"
	"strings"
	"testing"
)

func TestDropReason(t *testing.T) {
	for _, c := range []struct {
		trace Trace
		want  DropReason
	}{
		{Trace{Length: 3}, NotDropped},
		{Trace{Length: 3, Truncated: true, Missing: true}, NotDropped},
		{Trace{}, DroppedEmpty},
		{Trace{Length: 3, Aborted: true}, DroppedAborted},
		{Trace{Aborted: true}, DroppedAborted},
	} {
		if got := dropReason(c.trace); got != c.want {
			t.Errorf("%+v: %q, want %q", c.trace, got, c.want)
		}
	}
}

// What nobody will look at may be anything.
func TestCheckIgnoresWhatIsNotUsed(t *testing.T) {
	nan := math.NaN()
	for name, x := range map[string]Trace{
		"reward of a missing one":        {Length: 1, H: 1, Missing: true, Reward: nan, Penalty: nan},
		"H of an empty one":              {H: nan},
		"entropies of an aborted one":    {Length: 3, Aborted: true, Entropies: []float32{float32(nan)}},
		"H beside entropies":             {Length: 1, H: nan, Entropies: []float32{1}},
		"span without entropies":         {Length: 3, H: 1, Span: []bool{true}},
		"entropy rounded just below 0":   {Length: 1, Entropies: []float32{-1e-6}},
		"H rounded just below 0":         {Length: 1, H: -1e-9},
		"reward below 0":                 {Length: 1, Reward: -3},
		"penalty below 0 (k1 may be so)": {Length: 1, Penalty: -0.1},
	} {
		if err := checkTrace(x); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckTraceReportsEverything(t *testing.T) {
	err := checkTrace(Trace{Length: 2, Reward: math.NaN(), Penalty: math.Inf(1), Entropies: []float32{1}, Span: []bool{true, false}})
	for _, part := range []string{"reward NaN", "penalty +Inf", "1 token entropies, length 2", "span of 2 tokens"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("nothing about %q in %v", part, err)
		}
	}
}
