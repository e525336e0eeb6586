package uadt

import (
	"encoding/json"
	"testing"
)

// A state comes from a file that people can edit: whatever is restored must
// shape, and must be saved as it was.
func FuzzRestore(f *testing.F) {
	for _, seed := range []string{
		`{"version":1,"step":3,"tau":0.6,"sigma":0.1,"seeded":true,"estimator":"exact"}`,
		`{"version":1,"estimator":"exact"}`, `{"version":1,"tau":1e308,"seeded":true,"estimator":"exact"}`,
		`{"version":1,"tau":-1,"sigma":5e-324,"seeded":true,"estimator":"exact","controllers":{"a":1}}`,
		`{"version":2}`, `{"version":1,"step":-1,"estimator":"topk20"}`,
	} {
		f.Add([]byte(seed))
	}
	batch := batchOf(group("q", []float64{1, 0, 0.5}, []float64{0.2, 0.9, 0.4}))
	f.Fuzz(func(t *testing.T, data []byte) {
		var state State
		if json.Unmarshal(data, &state) != nil {
			return
		}
		s := shaper(t, nil)
		before := s.State()
		if err := s.Restore(state); err != nil {
			if after := s.State(); after.Step != before.Step || after.Tau != before.Tau || after.Seeded != before.Seeded {
				t.Fatalf("refused (%v), but the state is %+v", err, after)
			}
			return
		}
		if again := resumed(t, s, setup(nil)); again.State().Tau != state.Tau || again.State().Step != state.Step {
			t.Fatalf("%+v was saved as %+v", state, again.State())
		}
		r, err := s.Shape(batch)
		if err != nil {
			if s.State().Step != state.Step {
				t.Fatalf("refused (%v), but moved on", err)
			}
			return // a threshold at the edge of float64
		}
		for _, x := range r.Groups[0].Traces {
			if !finite(x.Shaped) || x.Omega < -1 || x.Omega > 1 {
				t.Fatalf("%+v under %+v", x, state)
			}
		}
	})
}

// Texts of a configuration: what is read is written the same way again.
func FuzzParseTexts(f *testing.F) {
	for _, seed := range []string{"60", "50%", " 7.5 % ", "-3", "0%", "NaN", "1e400", "topk20", "topk020", "topk-1", "exact", "surprisal", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if e, err := ParseExtent(text); err == nil {
			var c checks
			if e.check(&c, "key", true); len(c) > 0 {
				return // read, and refused by name
			}
			again, err := ParseExtent(e.String())
			if err != nil {
				t.Fatalf("%q was read as %+v, written as %s: %v", text, e, e, err)
			}
			near(t, "steps of 1000", again.Of(1000), e.Of(1000), 1e-6*(1+e.Of(1000)))
		}
		if e, err := ParseEstimator(text); err == nil && (string(e) != text || (e.K() > 0) == (e == Exact || e == Surprisal)) {
			t.Fatalf("%q was read as %q with k %d", text, e, e.K())
		}
	})
}
