package trainer

import (
	"math"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// rows makes one group a row of values, each with one trace.
func rowsOf(values ...[]float32) ([]Group, [][][]float32) {
	var groups []Group
	var out [][][]float32
	for _, v := range values {
		groups = append(groups, Group{Traces: []Sequence{{Tokens: make([]int32, len(v))}}})
		out = append(out, [][]float32{v})
	}
	return groups, out
}

func TestHighEntropy(t *testing.T) {
	groups, h := rowsOf([]float32{0.1, 0.9, 0.5}, []float32{0.9, 0.2})
	for _, c := range []struct {
		share float64
		want  [][]bool
	}{
		{0.2, [][]bool{{false, true, false}, {false, false}}},     // 1 of 5, the first of two alike
		{0.21, [][]bool{{false, true, false}, {true, false}}},     // rounded up to 2
		{0.6, [][]bool{{false, true, true}, {true, false}}},       //
		{0.999999999, [][]bool{{true, true, true}, {true, true}}}, //
	} {
		got, err := HighEntropy(groups, h, c.share)
		if err != nil {
			t.Fatal(err)
		}
		for q := range c.want {
			if !slices.Equal(got[q][0], c.want[q]) {
				t.Errorf("share %v: row %d %v, want %v", c.share, q, got[q][0], c.want[q])
			}
		}
	}
	for _, share := range []float64{0, 1} {
		if got, err := HighEntropy(groups, h, share); err != nil || got != nil {
			t.Errorf("share %v: %v (%v), want nil", share, got, err)
		}
	}
}

func TestHighEntropyLeavesMaskedTokensOut(t *testing.T) {
	groups, h := rowsOf([]float32{5, 1, 2})
	groups[0].Traces[0].Mask = []bool{false, true, true}
	h[0][0][0] = float32(math.NaN())
	got, err := HighEntropy(groups, h, 0.5)
	if err != nil || !slices.Equal(got[0][0], []bool{false, false, true}) {
		t.Errorf("%v (%v)", got, err)
	}
}

// (old - mean) * (A - mean): the token of high probability and high advantage,
// and the one of low probability and low advantage.
func TestHighCovariance(t *testing.T) {
	groups, old := rowsOf([]float32{-1, -3}, []float32{-1, -4})
	a := [][][]float32{{{1}}, {{-1}}} // mean 0; centred old 1.25, -0.75, 1.25, -1.75
	for _, c := range []struct {
		share float64
		want  [][]bool
	}{
		{0.25, [][]bool{{false, false}, {false, true}}},
		{0.01, [][]bool{{false, false}, {false, true}}}, // at least one
		{0.5, [][]bool{{true, false}, {false, true}}},
		{1, [][]bool{{true, true}, {true, true}}},
	} {
		got, err := HighCovariance(groups, old, a, c.share)
		if err != nil {
			t.Fatal(err)
		}
		for q := range c.want {
			if !slices.Equal(got[q][0], c.want[q]) {
				t.Errorf("share %v: row %d %v, want %v", c.share, q, got[q][0], c.want[q])
			}
		}
	}
	perToken := [][][]float32{{{1, 1}}, {{-1, -1}}}
	one, err1 := HighCovariance(groups, old, a, 0.5)
	two, err2 := HighCovariance(groups, old, perToken, 0.5)
	if err1 != nil || err2 != nil || !reflect.DeepEqual(one, two) {
		t.Errorf("%v (%v) and %v (%v)", one, err1, two, err2)
	}
}

func TestSelectionOfNothing(t *testing.T) {
	groups, empty := rowsOf([]float32{})
	if got, err := HighCovariance(groups, empty, [][][]float32{{{1}}}, 0.5); err != nil || len(got) != 1 || len(got[0][0]) != 0 {
		t.Errorf("%v (%v)", got, err)
	}
	if got, err := HighEntropy(groups, empty, 0.5); err != nil || len(got[0][0]) != 0 {
		t.Errorf("%v (%v)", got, err)
	}
}

func TestSelectionRefuses(t *testing.T) {
	groups, h := rowsOf([]float32{1, 2})
	a := [][][]float32{{{1}}}
	nan := [][][]float32{{{1, float32(math.NaN())}}}
	for _, share := range []float64{-0.1, 1.1, math.NaN()} {
		if _, err := HighEntropy(groups, h, share); err == nil {
			t.Errorf("entropy share %v was accepted", share)
		}
		if _, err := HighCovariance(groups, h, a, share); err == nil {
			t.Errorf("covariance share %v was accepted", share)
		}
	}
	for name, bad := range map[string][][][]float32{"groups": {}, "traces": {{}}, "tokens": {{{1}}}, "NaN": nan} {
		if _, err := HighEntropy(groups, bad, 0.5); err == nil {
			t.Errorf("entropies with wrong %s were accepted", name)
		}
		if _, err := HighCovariance(groups, bad, a, 0.5); err == nil {
			t.Errorf("log-probabilities with wrong %s were accepted", name)
		}
	}
	for name, bad := range map[string][][][]float32{"groups": {}, "traces": {{}}, "tokens": {{{1, 2, 3}}}} {
		if _, err := HighCovariance(groups, h, bad, 0.5); err == nil {
			t.Errorf("advantages with wrong %s were accepted", name)
		}
	}
}

// The chosen tokens are as many as asked for, and no other has a higher value.
func TestHighEntropyIsATopSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.SliceOfN(rapid.Float32Range(0, 3), 0, 6), 1, 5).Draw(t, "values")
		groups, h := rowsOf(values...)
		share := float64(rapid.IntRange(1, 99).Draw(t, "percent")) / 100
		got, err := HighEntropy(groups, h, share)
		if err != nil {
			t.Fatalf("%v", err)
		}
		total, chosen := 0, 0
		least, most := math.Inf(1), math.Inf(-1)
		for q := range values {
			for i, v := range values[q] {
				total++
				if got[q][0][i] {
					chosen++
					least = math.Min(least, float64(v))
				} else {
					most = math.Max(most, float64(v))
				}
			}
		}
		if want := int(math.Ceil(math.Round(share*float64(total)*1e9) / 1e9)); chosen != want {
			t.Fatalf("chose %d of %d, want %d", chosen, total, want)
		}
		if most > least {
			t.Fatalf("left %v out and took %v", most, least)
		}
	})
}
