package uadt

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// number reads any of the number types that YAML and JSON decoders produce.
func number(value any) (float64, bool) {
	switch x := value.(type) {
	case int:
		return float64(x), true
	case int64:
		return float64(x), true
	case uint64:
		return float64(x), true
	case float32:
		return float64(x), true
	case float64:
		return x, true
	case json.Number:
		f, err := x.Float64()
		return f, err == nil
	}
	return 0, false
}

// ParseSchedule reads a schedule as a configuration holds it: a number, or a
// map with shape, from, to, over and warmup. All problems are joined.
func ParseSchedule(value any) (Schedule, error) {
	if s, ok := value.(Schedule); ok {
		return s, nil
	}
	if x, ok := number(value); ok {
		return Constant(x), nil
	}
	fields, ok := value.(map[string]any)
	if !ok {
		return Schedule{}, fmt.Errorf("schedule %v: want a number or a map with shape, from, to, over, warmup", value)
	}
	s := Schedule{Shape: ShapeConstant}
	var problems []error
	for _, key := range sortedKeys(fields) {
		var err error
		switch key {
		case "shape":
			name, isText := fields[key].(string)
			if !isText {
				err = fmt.Errorf("want a name")
			}
			s.Shape = Shape(name)
		case "from":
			s.From, err = wantNumber(fields[key])
		case "to":
			s.To, err = wantNumber(fields[key])
		case "over":
			s.Over, err = ParseExtent(fields[key])
		case "warmup":
			s.Warmup, err = ParseExtent(fields[key])
		default:
			err = fmt.Errorf("unknown key, want shape, from, to, over or warmup")
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("schedule key %s: %v: %w", key, fields[key], err))
		}
	}
	return s, errors.Join(problems...)
}

// ParseGamma reads gamma as a configuration holds it: a number, or a map with
// half_life.
func ParseGamma(value any) (Gamma, error) {
	if g, ok := value.(Gamma); ok {
		return g, nil
	}
	if x, ok := number(value); ok {
		return Gamma{Value: x}, nil
	}
	fields, ok := value.(map[string]any)
	half, has := fields["half_life"]
	if !ok || !has || len(fields) != 1 {
		return Gamma{}, fmt.Errorf("gamma %v: want a number or a map with half_life", value)
	}
	extent, err := ParseExtent(half)
	if err != nil {
		return Gamma{}, fmt.Errorf("gamma half_life: %w", err)
	}
	if extent == (Extent{}) { // it would read as the number 0
		return Gamma{}, fmt.Errorf("gamma half_life %v: want more than 0", half)
	}
	return Gamma{HalfLife: extent}, nil
}

// Plain returns e as ParseExtent reads it: a number or a string such as "50%".
func (e Extent) Plain() any {
	if e.Share != 0 {
		return e.String()
	}
	return e.Steps
}

// Plain returns s as ParseSchedule reads it: a number, or a map.
func (s Schedule) Plain() any {
	if s.Shape == ShapeConstant && s.Warmup == (Extent{}) {
		return s.From
	}
	fields := map[string]any{"shape": string(s.Shape), "from": s.From}
	if s.Shape != ShapeConstant {
		fields["to"] = s.To
		fields["over"] = s.Over.Plain()
	}
	if s.Warmup != (Extent{}) {
		fields["warmup"] = s.Warmup.Plain()
	}
	return fields
}

// Plain returns g as ParseGamma reads it: a number, or a map.
func (g Gamma) Plain() any {
	if g.HalfLife != (Extent{}) {
		return map[string]any{"half_life": g.HalfLife.Plain()}
	}
	return g.Value
}

func wantNumber(value any) (float64, error) {
	x, ok := number(value)
	if !ok {
		return 0, fmt.Errorf("want a number")
	}
	return x, nil
}

func sortedKeys(fields map[string]any) []string {
	keys := make([]string, 0, len(fields))
	for key := range fields {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// UnmarshalYAML reads what [ParseSchedule] reads, through any YAML decoder that
// hands over an unmarshal function.
func (s *Schedule) UnmarshalYAML(unmarshal func(any) error) error {
	return decode(unmarshal, ParseSchedule, s)
}

// MarshalYAML writes what [ParseSchedule] reads.
func (s Schedule) MarshalYAML() (any, error) { return s.Plain(), nil }

// UnmarshalYAML reads what [ParseGamma] reads.
func (g *Gamma) UnmarshalYAML(unmarshal func(any) error) error {
	return decode(unmarshal, ParseGamma, g)
}

// MarshalYAML writes what [ParseGamma] reads.
func (g Gamma) MarshalYAML() (any, error) { return g.Plain(), nil }

func decode[T any](unmarshal func(any) error, parse func(any) (T, error), into *T) error {
	var plain any
	if err := unmarshal(&plain); err != nil {
		return err
	}
	value, err := parse(plain)
	if err != nil {
		return err
	}
	*into = value
	return nil
}
