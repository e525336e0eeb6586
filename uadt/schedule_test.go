package uadt

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// From 0.5 to 0 over 60, at s = 0, 15, 30, 60, 90: the specification's numbers.
func TestScheduleWorkedNumbers(t *testing.T) {
	steps := []int{0, 15, 30, 60, 90}
	for _, c := range []struct {
		shape Shape
		want  []float64
	}{
		{ShapeLinear, []float64{0.5, 0.375, 0.25, 0, 0}},
		{ShapeCosine, []float64{0.5, 0.426777, 0.25, 0, 0}},
		{ShapeStep, []float64{0.5, 0.5, 0.5, 0, 0}},
		{ShapeConstant, []float64{0.5, 0.5, 0.5, 0.5, 0.5}},
	} {
		for _, over := range []struct {
			name   string
			extent Extent
			length int
		}{{"steps", Extent{Steps: 60}, 1000}, {"share", Extent{Share: 0.5}, 120}} {
			s := Schedule{Shape: c.shape, From: 0.5, To: 0, Over: over.extent}
			for i, step := range steps {
				near(t, string(c.shape)+" over "+over.name, s.At(step, over.length), c.want[i], 5e-7)
			}
		}
	}
}

func TestScheduleUpwards(t *testing.T) {
	s := Schedule{Shape: ShapeLinear, From: 0.2, To: 1, Over: Extent{Steps: 4}}
	for step, want := range []float64{0.2, 0.4, 0.6, 0.8, 1, 1} {
		near(t, "linear", s.At(step, 10), want, 1e-15)
	}
	s.Shape = ShapeCosine
	near(t, "cosine start", s.At(0, 10), 0.2, 1e-15)
	near(t, "cosine middle", s.At(2, 10), 0.6, 1e-15)
	near(t, "cosine end", s.At(4, 10), 1, 1e-15)
}

func TestScheduleStepEdge(t *testing.T) {
	s := Schedule{Shape: ShapeStep, From: 1, To: 2, Over: Extent{Steps: 3}}
	for step, want := range []float64{1, 1, 1, 2, 2} {
		near(t, "step", s.At(step, 10), want, 0)
	}
	s.Over = Extent{Share: 0.5} // 30.5 of 61: From holds at 30, To from 31
	near(t, "share before the edge", s.At(30, 61), 1, 0)
	near(t, "share after the edge", s.At(31, 61), 2, 0)
}

func TestScheduleWarmup(t *testing.T) {
	constant := Schedule{Shape: ShapeConstant, From: 2, Warmup: Extent{Steps: 4}}
	for step, want := range []float64{0.5, 1, 1.5, 2, 2, 2} {
		near(t, "constant with warm-up", constant.At(step, 100), want, 1e-15)
	}
	// over starts when the warm-up ends.
	linear := Schedule{Shape: ShapeLinear, From: 1, To: 0, Over: Extent{Steps: 4}, Warmup: Extent{Steps: 2}}
	for step, want := range []float64{0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0} {
		near(t, "linear with warm-up", linear.At(step, 100), want, 1e-15)
	}
	share := Schedule{Shape: ShapeConstant, From: 1, Warmup: Extent{Share: 0.1}}
	near(t, "share of warm-up", share.At(0, 100), 0.1, 1e-15)
	near(t, "after the warm-up", share.At(9, 100), 1, 0)
}

func drawSchedule(t *rapid.T) Schedule {
	return Schedule{
		Shape:  rapid.SampledFrom([]Shape{ShapeConstant, ShapeLinear, ShapeCosine, ShapeStep}).Draw(t, "shape"),
		From:   rapid.Float64Range(0, 2).Draw(t, "from"),
		To:     rapid.Float64Range(0, 2).Draw(t, "to"),
		Over:   Extent{Steps: rapid.Float64Range(0.5, 80).Draw(t, "over")},
		Warmup: Extent{Steps: float64(rapid.IntRange(0, 10).Draw(t, "warmup"))},
	}
}

func TestScheduleStaysBetweenItsEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSchedule(t)
		low := math.Min(s.From, s.To)
		if s.Shape == ShapeConstant {
			low = s.From
		}
		for step := range 120 {
			v := s.At(step, 100)
			if v < -1e-12 || v > s.Max()+1e-12 {
				t.Fatalf("value %v at %d, outside [0, %v]", v, step, s.Max())
			}
			if float64(step) >= s.Warmup.Steps && v < low-1e-12 {
				t.Fatalf("value %v at %d after the warm-up, below %v", v, step, low)
			}
		}
		end := s.To
		if s.Shape == ShapeConstant {
			end = s.From
		}
		near(t, "value at the end", s.At(1000, 100), end, 1e-12)
	})
}

func TestScheduleIsMonotonic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSchedule(t)
		s.Warmup = Extent{}
		previous := s.At(0, 100)
		near(t, "value at 0", previous, s.From, 1e-12)
		for step := 1; step < 100; step++ {
			v := s.At(step, 100)
			if (v-previous)*(s.To-s.From) < -1e-15 {
				t.Fatalf("%s from %v to %v turns back at %d", s.Shape, s.From, s.To, step)
			}
			previous = v
		}
	})
}

// A share is the same as its number of steps.
func TestScheduleShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSchedule(t)
		length := rapid.IntRange(1, 400).Draw(t, "length")
		share := s
		share.Over = Extent{Share: rapid.Float64Range(0.01, 1).Draw(t, "share")}
		s.Over = Extent{Steps: share.Over.Share * float64(length)}
		for _, step := range []int{0, 1, length / 3, length / 2, length - 1, length} {
			near(t, "value", share.At(step, length), s.At(step, length), 0)
		}
	})
}

func TestGamma(t *testing.T) {
	near(t, "number", Gamma{Value: 0.99}.Of(60), 0.99, 0)
	near(t, "zero", Gamma{}.Of(60), 0, 0)
	near(t, "half-life of one step", Gamma{HalfLife: Extent{Steps: 1}}.Of(60), 0.5, 1e-15)
	near(t, "half-life of 10 %", math.Pow(Gamma{HalfLife: Extent{Share: 0.1}}.Of(60), 6), 0.5, 1e-12)
	// With gamma 0.99 the first batch still weighs 0.547 after 60 steps.
	near(t, "weight of the first batch", math.Pow(0.99, 60), 0.547, 5e-4)
}

func TestGammaHalfLifeHalves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		half := rapid.Float64Range(0.1, 500).Draw(t, "half-life")
		gamma := Gamma{HalfLife: Extent{Steps: half}}.Of(1)
		near(t, "weight after the half-life", math.Pow(gamma, half), 0.5, 1e-9)
	})
}

func TestExtentText(t *testing.T) {
	for text, want := range map[string]Extent{
		"60":     {Steps: 60},
		"0":      {},
		"12.5":   {Steps: 12.5},
		"50%":    {Share: 0.5},
		" 10 % ": {Share: 0.1},
		"100%":   {Share: 1},
	} {
		got, err := ParseExtent(text)
		if err != nil || got != want {
			t.Errorf("%q is %+v (%v), want %+v", text, got, err, want)
		}
	}
	for _, value := range []any{"", "%", "half", "5 steps", true, nil, []int{1}} {
		if got, err := ParseExtent(value); err == nil {
			t.Errorf("%v was read as %+v", value, got)
		}
	}
	for _, e := range []Extent{{Steps: 60}, {Share: 0.5}, {Share: 0.07}, {}} {
		got, err := ParseExtent(e.String())
		if err != nil || math.Abs(got.Share-e.Share) > 1e-12 || got.Steps != e.Steps {
			t.Errorf("%+v came back as %+v (%v)", e, got, err)
		}
	}
}
