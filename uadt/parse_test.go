package uadt

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseSchedule(t *testing.T) {
	for _, c := range []struct {
		name  string
		value any
		want  Schedule
	}{
		{"int", 1, Constant(1)},
		{"int64", int64(2), Constant(2)},
		{"uint64", uint64(3), Constant(3)},
		{"float32", float32(0.5), Constant(0.5)},
		{"float64", 0.25, Constant(0.25)},
		{"JSON number", json.Number("0.125"), Constant(0.125)},
		{"itself", Constant(4), Constant(4)},
		{"map", map[string]any{"shape": "linear", "from": 0.5, "to": 0, "over": "50%"},
			Schedule{Shape: ShapeLinear, From: 0.5, Over: Extent{Share: 0.5}}},
		{"steps", map[string]any{"shape": "step", "from": 1, "to": 0.1, "over": 20},
			Schedule{Shape: ShapeStep, From: 1, To: 0.1, Over: Extent{Steps: 20}}},
		{"warm-up alone", map[string]any{"from": 0.5, "warmup": 5},
			Schedule{Shape: ShapeConstant, From: 0.5, Warmup: Extent{Steps: 5}}},
	} {
		got, err := ParseSchedule(c.value)
		if err != nil || got != c.want {
			t.Errorf("%s: %+v (%v), want %+v", c.name, got, err, c.want)
		}
	}
}

func TestParseScheduleReportsEverything(t *testing.T) {
	_, err := ParseSchedule(map[string]any{"shape": 3, "from": "a", "to": true, "over": "x", "warmup": nil, "until": 1})
	if err == nil {
		t.Fatal("no error")
	}
	for _, key := range []string{"shape", "from", "to", "over", "warmup", "until"} {
		if !strings.Contains(err.Error(), "schedule key "+key+":") {
			t.Errorf("nothing about %s in: %v", key, err)
		}
	}
	for _, value := range []any{nil, "0.5", []any{1}, true} {
		if got, err := ParseSchedule(value); err == nil {
			t.Errorf("%v was read as %+v", value, got)
		}
	}
}

func TestParseGamma(t *testing.T) {
	for _, c := range []struct {
		value any
		want  Gamma
	}{
		{0.99, Gamma{Value: 0.99}},
		{0, Gamma{}},
		{Gamma{Value: 0.5}, Gamma{Value: 0.5}},
		{map[string]any{"half_life": "10%"}, Gamma{HalfLife: Extent{Share: 0.1}}},
		{map[string]any{"half_life": 6}, Gamma{HalfLife: Extent{Steps: 6}}},
	} {
		got, err := ParseGamma(c.value)
		if err != nil || got != c.want {
			t.Errorf("%v: %+v (%v), want %+v", c.value, got, err, c.want)
		}
	}
	for _, value := range []any{nil, "0.9", map[string]any{}, map[string]any{"half_life": "x"},
		map[string]any{"halflife": 3}, map[string]any{"half_life": 3, "value": 1},
		// A half-life of 0 would read as "gamma is the number 0".
		map[string]any{"half_life": 0}, map[string]any{"half_life": "0%"}, map[string]any{"half_life": "0"}} {
		if got, err := ParseGamma(value); err == nil {
			t.Errorf("%v was read as %+v", value, got)
		}
	}
}

func TestScheduleRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawSchedule(t)
		if rapid.Bool().Draw(t, "share") {
			want.Over = Extent{Share: float64(rapid.IntRange(1, 100).Draw(t, "percent")) / 100}
		}
		if want.Shape == ShapeConstant {
			want.To, want.Over = 0, Extent{}
		}
		got, err := ParseSchedule(want.Plain())
		if err != nil || got != want {
			t.Fatalf("%+v came back as %+v (%v) through %v", want, got, err, want.Plain())
		}
	})
}

func TestGammaRoundTrip(t *testing.T) {
	for _, want := range []Gamma{{}, {Value: 0.99}, {HalfLife: Extent{Steps: 6}}, {HalfLife: Extent{Share: 0.1}}} {
		got, err := ParseGamma(want.Plain())
		if err != nil || got != want {
			t.Errorf("%+v came back as %+v (%v)", want, got, err)
		}
	}
}

// decoder stands for a YAML node: it hands its value over.
func decoder(value any, fail error) func(any) error {
	return func(into any) error {
		if fail != nil {
			return fail
		}
		reflect.ValueOf(into).Elem().Set(reflect.ValueOf(value))
		return nil
	}
}

func TestUnmarshalYAML(t *testing.T) {
	var s Schedule
	if err := s.UnmarshalYAML(decoder(0.25, nil)); err != nil || s != Constant(0.25) {
		t.Errorf("schedule %+v (%v)", s, err)
	}
	var g Gamma
	if err := g.UnmarshalYAML(decoder(map[string]any{"half_life": "10%"}, nil)); err != nil || g.HalfLife.Share != 0.1 {
		t.Errorf("gamma %+v (%v)", g, err)
	}
	before := s
	if err := s.UnmarshalYAML(decoder("often", nil)); err == nil || s != before {
		t.Errorf("a wrong value gave %+v (%v)", s, err)
	}
	broken := errors.New("broken node")
	if err := g.UnmarshalYAML(decoder(nil, broken)); !errors.Is(err, broken) {
		t.Errorf("error %v, want %v", err, broken)
	}
	if plain, err := s.MarshalYAML(); err != nil || plain != 0.25 {
		t.Errorf("marshalled %v (%v)", plain, err)
	}
	if plain, err := g.MarshalYAML(); err != nil || !reflect.DeepEqual(plain, map[string]any{"half_life": "10%"}) {
		t.Errorf("marshalled %v (%v)", plain, err)
	}
}
