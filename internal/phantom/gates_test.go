package phantom

import (
	"math"
	"strings"
	"testing"
)

func TestGatesByHand(t *testing.T) {
	groups := []SampledGroup{
		{Hard: true, Traces: []Sampled{
			{Tokens: 10, Entropy: 0.1, Reward: 0.5},
			{Tokens: 30, Entropy: 0.3, Reward: 1.5, Correct: true},
			{Tokens: 30, Entropy: 0.3, Reward: 1.5, Correct: true},
			{Tokens: 10, Entropy: 0.1, Reward: 0.5},
		}},
		{Hard: true, Traces: []Sampled{
			{Tokens: 10, Entropy: 0.2, Reward: 1.5, Correct: true},
			{Tokens: 30, Entropy: 0.2, Reward: 1.5, Correct: true},
		}},
		{Traces: []Sampled{{Tokens: 20, Entropy: 0.1, Reward: 1.5, Correct: true}}},
		{},
	}
	g := Measure(groups)
	// Entropy: SDs 0.1, 0, 0. Length: mean 20, SD sqrt(600/7). Hard, long: 3 of 3
	// right; short: 1 of 3.
	want := Gates{EntropySD: 0.1 / 3, Informative: 1.0 / 3, LengthCV: math.Sqrt(600.0/7) / 20, LongMinusShort: 2.0 / 3}
	for name, pair := range map[string][2]float64{
		"entropy": {g.EntropySD, want.EntropySD}, "informative": {g.Informative, want.Informative},
		"length": {g.LengthCV, want.LengthCV}, "long minus short": {g.LongMinusShort, want.LongMinusShort},
	} {
		if math.Abs(pair[0]-pair[1]) > 1e-12 {
			t.Errorf("%s = %v, want %v", name, pair[0], pair[1])
		}
	}
	err := g.Check()
	if err == nil || !strings.Contains(err.Error(), "SD of entropy within groups, nats is 0.033") ||
		!strings.Contains(err.Error(), "informative") || strings.Contains(err.Error(), "length") {
		t.Errorf("Check = %v, want the entropy and informative gates alone", err)
	}
	if table := g.String(); strings.Count(table, "\n") != 4 || !strings.Contains(table, "0.667  (at least 0.10)") {
		t.Errorf("table:\n%s", table)
	}
}

func TestGatesHold(t *testing.T) {
	g := Gates{EntropySD: MinEntropySD, Informative: MinInformative, LengthCV: MinLengthCV, LongMinusShort: MinLongMinusShort}
	if err := g.Check(); err != nil {
		t.Errorf("gates exactly at their limits: %v", err)
	}
}

// Without long traces, or without hard questions, nothing shows that depth
// pays: the gate must fail, not pass by default.
func TestGatesWithoutEvidenceFail(t *testing.T) {
	same := []SampledGroup{{Hard: true, Traces: []Sampled{{Tokens: 9}, {Tokens: 9}}}}
	for name, groups := range map[string][]SampledGroup{"one length": same, "none": nil} {
		if err := Measure(groups).Check(); err == nil || !strings.Contains(err.Error(), "long minus short accuracy on hard questions is NaN") {
			t.Errorf("%s: Check = %v", name, err)
		}
	}
}
