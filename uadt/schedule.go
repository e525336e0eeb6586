package uadt

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Extent is a stretch of shaping steps: a number of them, or a share of the
// stage when Share is set.
type Extent struct {
	Steps float64 // used when Share is 0
	Share float64 // in (0, 1]
}

// Of returns the extent in shaping steps of a stage of length steps. It is not
// rounded: half of a stage of 61 steps is 30.5.
func (e Extent) Of(length int) float64 {
	if e.Share != 0 {
		return e.Share * float64(length)
	}
	return e.Steps
}

// String renders e as it is written in a configuration: "60" or "50%".
func (e Extent) String() string {
	if e.Share != 0 {
		return strconv.FormatFloat(e.Share*100, 'g', 12, 64) + "%"
	}
	return strconv.FormatFloat(e.Steps, 'g', -1, 64)
}

// ParseExtent reads a number of steps or a share such as "50%".
func ParseExtent(value any) (Extent, error) {
	if x, ok := number(value); ok {
		return Extent{Steps: x}, nil
	}
	text, ok := value.(string)
	if !ok {
		return Extent{}, fmt.Errorf("extent %v: want a number of steps or a share such as 50%%", value)
	}
	digits, share := strings.CutSuffix(strings.TrimSpace(text), "%")
	x, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if err != nil {
		return Extent{}, fmt.Errorf("extent %q: want a number of steps or a share such as 50%%", text)
	}
	if share {
		return Extent{Share: x / 100}, nil
	}
	return Extent{Steps: x}, nil
}

func (e Extent) check(c *checks, key string, allowZero bool) {
	if e.Share != 0 {
		c.require(finite(e.Share) && e.Share > 0 && e.Share <= 1, key, e, "a share in (0%, 100%]")
		return
	}
	if allowZero {
		c.require(finite(e.Steps) && e.Steps >= 0, key, e, "a number of steps of at least 0, or a share")
		return
	}
	c.require(finite(e.Steps) && e.Steps > 0, key, e, "a number of steps above 0, or a share")
}

// Shape is the course of a schedule by name.
type Shape string

// The courses, over shaping steps s.
const (
	ShapeConstant Shape = "constant" // From
	ShapeLinear   Shape = "linear"   // From + (To-From)*min(s/over, 1)
	ShapeCosine   Shape = "cosine"   // To + (From-To)*(1 + cos(pi*min(s/over, 1)))/2
	ShapeStep     Shape = "step"     // From while s < over, then To
)

// Schedule is a value that may change over shaping steps.
type Schedule struct {
	Shape    Shape   // constant, linear, cosine or step
	From, To float64 // To is ignored by constant
	Over     Extent  // how long From takes to become To; ignored by constant
	// Warmup of w steps multiplies the value by min((s+1)/w, 1), and Over starts
	// after it. 0 is none.
	Warmup Extent
}

// Constant returns the schedule that is always value.
func Constant(value float64) Schedule { return Schedule{Shape: ShapeConstant, From: value} }

// At returns the value at shaping step s of a stage of length steps.
func (s Schedule) At(step, length int) float64 {
	warm := s.Warmup.Of(length)
	factor := 1.0
	if warm > 0 {
		factor = math.Min(float64(step+1)/warm, 1)
	}
	t := math.Max(float64(step)-warm, 0)
	over := s.Over.Of(length)
	progress := 1.0
	if over > 0 {
		progress = math.Min(t/over, 1)
	}
	value := s.From
	switch s.Shape {
	case ShapeLinear:
		value = s.From + (s.To-s.From)*progress
	case ShapeCosine:
		value = s.To + (s.From-s.To)*(1+math.Cos(math.Pi*progress))/2
	case ShapeStep:
		if t >= over {
			value = s.To
		}
	}
	return factor * value
}

// Max returns the largest value that the schedule can take.
func (s Schedule) Max() float64 {
	if s.Shape == ShapeConstant {
		return s.From
	}
	return math.Max(s.From, s.To)
}

func (s Schedule) check(c *checks, key string) {
	oneOf(c, key+".shape", s.Shape, ShapeConstant, ShapeLinear, ShapeCosine, ShapeStep)
	s.Warmup.check(c, key+".warmup", true)
	from := key
	if s.Shape != ShapeConstant {
		from = key + ".from"
		c.require(finite(s.To) && s.To >= 0, key+".to", s.To, "a number of at least 0")
		s.Over.check(c, key+".over", false)
	}
	c.require(finite(s.From) && s.From >= 0, from, s.From, "a number of at least 0")
}

// Gamma is the memory of an exponential moving average: a number, or a
// half-life when HalfLife is set.
type Gamma struct {
	Value    float64 // in [0, 1]; used when HalfLife is zero
	HalfLife Extent  // shaping steps until a batch weighs half
}

// Of returns gamma for a stage of length steps: Value, or 0.5^(1/half-life).
func (g Gamma) Of(length int) float64 {
	if g.HalfLife == (Extent{}) {
		return g.Value
	}
	return math.Exp2(-1 / g.HalfLife.Of(length))
}

func (g Gamma) check(c *checks, key string) {
	if g.HalfLife != (Extent{}) {
		c.require(g.Value == 0, key, g.Value, "a number or a half_life, not both")
		g.HalfLife.check(c, key+".half_life", false)
		return
	}
	c.require(finite(g.Value) && g.Value >= 0 && g.Value <= 1, key, g.Value, "a number in [0, 1]")
}
