package uadt

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// FieldError says that one key has a value outside its range. Validate joins
// one for each offending key.
type FieldError struct {
	Key   string // full name, such as uadt.lambda.over
	Value any
	Want  string // what is allowed
}

// Error implements error.
func (e *FieldError) Error() string {
	return fmt.Sprintf("%s: %v is not allowed, want %s", e.Key, e.Value, e.Want)
}

// checks collects field errors.
type checks []error

func (c *checks) require(ok bool, key string, value any, want string) {
	if !ok {
		*c = append(*c, &FieldError{Key: key, Value: value, Want: want})
	}
}

func oneOf[T ~string](c *checks, key string, value T, allowed ...T) {
	names := make([]string, len(allowed))
	for i, a := range allowed {
		names[i] = string(a)
	}
	c.require(slices.Contains(allowed, value), key, fmt.Sprintf("%q", string(value)), "one of "+strings.Join(names, ", "))
}

// finite says that x is neither NaN nor infinite.
func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// Validate reports every key that is out of range, joined, each a *FieldError;
// nil when all are in range.
func (o Options) Validate() error {
	var c checks
	c.require(ruleNamed(o.Rule) != nil, "uadt.rule", fmt.Sprintf("%q", o.Rule), "one of "+strings.Join(ruleNames(), ", "))
	for i, name := range o.Shadow {
		c.require(ruleNamed(name) != nil, fmt.Sprintf("uadt.shadow[%d]", i), fmt.Sprintf("%q", name), "one of "+strings.Join(ruleNames(), ", "))
	}
	o.Gamma.check(&c, "uadt.gamma")
	o.Lambda.check(&c, "uadt.lambda")
	o.Gain.check(&c, "uadt.gain")
	oneOf(&c, "uadt.norm", o.Norm, Diff, Rel, ZScore)
	_, err := ParseEstimator(string(o.Entropy))
	c.require(err == nil, "uadt.entropy", fmt.Sprintf("%q", string(o.Entropy)), "exact, surprisal, or topk and k of at least 1, such as topk20")
	c.require(finite(o.Kappa) && o.Kappa >= 0, "uadt.kappa", o.Kappa, "a number of at least 0 (0 is unlimited)")
	c.require(finite(o.Floor) && o.Floor > 0, "uadt.floor", o.Floor, "a number of nats above 0")
	oneOf(&c, "uadt.span", o.Span, SpanResponse, SpanThink)
	oneOf(&c, "uadt.level", o.Level, LevelTrace, LevelGroup)
	oneOf(&c, "uadt.truncated", o.Truncated, Include, Exclude)
	oneOf(&c, "uadt.placebo", o.Placebo, PlaceboOff, PlaceboWithin, PlaceboMean)
	oneOf(&c, "uadt.update", o.Update, UpdateAfter, UpdateBefore)
	return errors.Join(c...)
}

// Validate reports every key that is out of range, joined, each a *FieldError.
func (o AdvantageOptions) Validate() error {
	var c checks
	oneOf(&c, "grpo.advantage", o.Advantage, GRPO, DrGRPO, RLOO)
	c.require(finite(o.Eps) && o.Eps >= 0, "grpo.eps", o.Eps, "a number of at least 0")
	c.require(finite(o.MinStd) && o.MinStd > 0, "grpo.min_std", o.MinStd, "a number above 0")
	return errors.Join(c...)
}
