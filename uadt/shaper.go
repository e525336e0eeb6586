package uadt

import (
	"errors"
	"fmt"
)

// Setup is what a [Shaper] is made from.
type Setup struct {
	Options   Options          // section uadt
	Advantage AdvantageOptions // the advantage keys of section grpo
	// StageSteps is the number of shaping steps of this RL stage: what shares
	// ("50%") are of. At least 1.
	StageSteps int
	Seed       int64 // of the run; only the placebo draws from it
}

// Shaper shapes the rollout batches of one RL stage, one after the other. It is
// not safe for concurrent use.
type Shaper struct {
	setup   Setup
	rule    Rule
	shadows []Rule
	state   State
}

// NewShaper checks setup and returns a shaper at shaping step 0, unseeded. All
// problems are reported together.
func NewShaper(setup Setup) (*Shaper, error) {
	problems := []error{setup.Options.Validate(), setup.Advantage.Validate()}
	if setup.StageSteps < 1 {
		problems = append(problems, &FieldError{Key: "shaping steps of the stage", Value: setup.StageSteps, Want: "at least 1"})
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("uadt options: %w", err)
	}
	s := &Shaper{setup: setup, rule: *ruleNamed(setup.Options.Rule)}
	for _, name := range setup.Options.Shadow {
		s.shadows = append(s.shadows, *ruleNamed(name))
	}
	s.state = State{Version: stateVersion, Estimator: setup.Options.Entropy}
	return s, nil
}

// Shape computes the advantages of batch and moves on by one shaping step. On
// an error (an empty batch, NaN or infinite input, mismatched lengths: all
// reported together) the state is unchanged.
//
// The order is fixed: read the schedules at s; advantages by group; H; mu and
// SD over the counted traces; if unseeded, tau = mu and sigma = SD; u and
// omega; placebo; rule; re-centring; rescaling; then
// tau = gamma*tau + (1-gamma)*mu, sigma likewise, and s = s+1. With
// uadt.update: before, tau and sigma move before u is computed.
func (s *Shaper) Shape(batch Batch) (Result, error) {
	if err := check(batch); err != nil {
		return Result{}, fmt.Errorf("shaping step %d: %w", s.state.Step, err)
	}
	w := s.begin(batch)
	if err := w.advantages(); err != nil {
		return Result{}, fmt.Errorf("shaping step %d: %w", s.state.Step, err)
	}
	w.entropies()
	next := w.threshold(s.state)
	w.factors()
	w.placebo()
	for i, rule := range s.shadows {
		w.setShadow(i, w.shape(rule))
	}
	w.setShaped(w.shape(s.rule))
	w.measure()
	if err := w.finite(); err != nil {
		return Result{}, fmt.Errorf("shaping step %d: %w", s.state.Step, err)
	}
	s.state = next
	return w.result, nil
}

// begin lays out the result of batch and reads the schedules.
func (s *Shaper) begin(batch Batch) *work {
	o, length := s.setup.Options, s.setup.StageSteps
	w := &work{setup: s.setup, batch: batch, result: Result{
		Step:      s.state.Step,
		Lambda:    o.Lambda.At(s.state.Step, length),
		Gain:      o.Gain.At(s.state.Step, length),
		Gamma:     o.Gamma.Of(length),
		Estimator: o.Entropy,
		Rule:      s.rule.Name,
		Groups:    make([]GroupResult, len(batch.Groups)),
		Metrics:   map[string]float64{},
	}}
	for _, r := range s.shadows {
		w.result.ShadowRules = append(w.result.ShadowRules, r.Name)
	}
	for q, g := range batch.Groups {
		traces := make([]TraceResult, len(g.Traces))
		for i, t := range g.Traces {
			traces[i] = TraceResult{ID: t.ID, Dropped: dropReason(t)}
			if len(s.shadows) > 0 {
				traces[i].Shadow = make([]float64, len(s.shadows))
			}
		}
		w.result.Groups[q] = GroupResult{ID: g.ID, Traces: traces}
	}
	return w
}
