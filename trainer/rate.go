package trainer

import (
	"errors"
	"fmt"
	"math"
)

// Decay is the course of a learning rate after its warm-up.
type Decay string

// The courses.
const (
	DecayConstant Decay = "constant"
	DecayLinear   Decay = "linear"
	DecayCosine   Decay = "cosine"
)

// LearningRate is the learning rate over the optimizer updates of a stage.
type LearningRate struct {
	Peak   float64 // reached at the end of the warm-up
	Final  float64 // that linear and cosine approach; default 0
	Warmup int     // updates of linear warm-up; default 0
	Total  int     // updates of the stage; needed by linear and cosine
	Decay  Decay
}

// At returns the learning rate of update n of the stage, counted from 0. While
// n < Warmup it is Peak*(n+1)/Warmup. After that, with
// p = min((n-Warmup)/(Total-Warmup), 1): constant is Peak, linear
// Peak + (Final-Peak)*p, cosine Final + (Peak-Final)*(1+cos(pi*p))/2. The last
// update, n = Total-1, still has p < 1: no update is spent at a rate of 0.
func (r LearningRate) At(n int) float64 {
	if n < r.Warmup {
		return r.Peak * float64(n+1) / float64(r.Warmup)
	}
	p := 1.0
	if rest := r.Total - r.Warmup; rest > 0 {
		p = math.Min(float64(n-r.Warmup)/float64(rest), 1)
	}
	switch r.Decay {
	case DecayLinear:
		return r.Peak + (r.Final-r.Peak)*p
	case DecayCosine:
		return r.Final + (r.Peak-r.Final)*(1+math.Cos(math.Pi*p))/2
	}
	return r.Peak
}

// Validate reports everything that is out of range.
func (r LearningRate) Validate() error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if !inRange(r.Peak, 0, math.MaxFloat64) {
		bad("learning rate %v: want at least 0", r.Peak)
	}
	if !inRange(r.Final, 0, math.MaxFloat64) {
		bad("final learning rate %v: want at least 0", r.Final)
	}
	if r.Warmup < 0 {
		bad("warm-up of %d updates: want at least 0", r.Warmup)
	}
	switch r.Decay {
	case DecayConstant:
	case DecayLinear, DecayCosine:
		if r.Total < 1 || r.Warmup > r.Total {
			bad("decay %s over %d updates, %d of them warm-up: want at least 1 and no longer a warm-up", r.Decay, r.Total, r.Warmup)
		}
	default:
		bad("decay %q: want %s, %s or %s", string(r.Decay), DecayConstant, DecayLinear, DecayCosine)
	}
	return errors.Join(problems...)
}

// inRange says that low <= x <= high; NaN is in no range.
func inRange(x, low, high float64) bool { return x >= low && x <= high }
