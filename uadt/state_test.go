package uadt

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Saved at any point, through JSON, and restored into a new shaper: the same
// bits from there on.
func TestResumeGivesTheSameBits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup := drawSetup(t)
		batches := rapid.SliceOfN(rapid.Custom(drawBatch), 2, 6).Draw(t, "batches")
		stop := rapid.IntRange(0, len(batches)-1).Draw(t, "stop")
		whole, err := NewShaper(setup)
		if err != nil {
			t.Fatalf("setup: %v", err)
		}
		var want []Result
		var saved []byte
		for i, b := range batches {
			if i == stop {
				if saved, err = json.Marshal(whole.State()); err != nil {
					t.Fatalf("save: %v", err)
				}
			}
			want = append(want, shape(t, whole, b))
		}
		var state State
		if err := json.Unmarshal(saved, &state); err != nil {
			t.Fatalf("load: %v", err)
		}
		resumed, _ := NewShaper(setup)
		if err := resumed.Restore(state); err != nil {
			t.Fatalf("restore: %v", err)
		}
		for i := stop; i < len(batches); i++ {
			if got := shape(t, resumed, batches[i]); !reflect.DeepEqual(got, want[i]) {
				t.Fatalf("batch %d after a resume at %d:\n%+v\nwant\n%+v", i, stop, got, want[i])
			}
		}
		if !reflect.DeepEqual(resumed.State(), whole.State()) {
			t.Fatalf("states %+v and %+v", resumed.State(), whole.State())
		}
	})
}

func TestRestoreRefuses(t *testing.T) {
	good := State{Version: stateVersion, Step: 3, Tau: 0.4, Sigma: 0.1, Seeded: true, Estimator: Exact}
	for part, change := range map[string]func(*State){
		"version 9":    func(s *State) { s.Version = 9 },
		"estimator":    func(s *State) { s.Estimator = Surprisal },
		"step -1":      func(s *State) { s.Step = -1 },
		"tau NaN":      func(s *State) { s.Tau = math.NaN() },
		"sigma +Inf":   func(s *State) { s.Sigma = math.Inf(1) },
		"sigma -1":     func(s *State) { s.Sigma = -1 },
		"never seeded": func(s *State) { s.Seeded = false },
	} {
		s := shaper(t, nil)
		bad := good
		change(&bad)
		if err := s.Restore(bad); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: error %v", part, err)
		}
		if s.State().Step != 0 || s.State().Seeded {
			t.Errorf("%s: the state moved to %+v", part, s.State())
		}
	}
	if err := shaper(t, nil).Restore(good); err != nil {
		t.Errorf("a good state: %v", err)
	}
	err := shaper(t, nil).Restore(State{Version: 9, Step: -1, Estimator: Surprisal})
	for _, part := range []string{"version", "step", "estimator"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("nothing about %s in %v", part, err)
		}
	}
}

func TestStateIsACopy(t *testing.T) {
	s := shaper(t, nil)
	given := State{Version: stateVersion, Estimator: Exact, Controllers: map[string]float64{"x": 1}}
	if err := s.Restore(given); err != nil {
		t.Fatal(err)
	}
	given.Controllers["x"] = 2
	s.State().Controllers["x"] = 3
	if got := s.State().Controllers["x"]; got != 1 {
		t.Errorf("controller %v, want 1", got)
	}
}

func TestCarry(t *testing.T) {
	previous := State{Version: stateVersion, Step: 40, Tau: 0.4, Sigma: 0.1, Seeded: true, Estimator: Exact}
	off := shaper(t, nil)
	if err := off.CarryFrom(previous); err != nil || off.State().Seeded {
		t.Errorf("carry off: %+v (%v)", off.State(), err)
	}
	on := shaper(t, func(s *Setup) { s.Options.Carry = true })
	if err := on.CarryFrom(previous); err != nil {
		t.Fatal(err)
	}
	want := State{Version: stateVersion, Tau: 0.4, Sigma: 0.1, Seeded: true, Estimator: Exact}
	if !reflect.DeepEqual(on.State(), want) {
		t.Errorf("carry on: %+v, want %+v", on.State(), want)
	}
	previous.Estimator = Surprisal
	if err := on.CarryFrom(previous); err == nil {
		t.Error("the threshold of another estimator was carried")
	}
}
