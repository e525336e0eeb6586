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
func (s *Shaper) Shape(batch Batch) (Result, error) {
	return Result{}, errors.New("not computed yet")
}

// State returns a copy of the state, to be saved with the checkpoint.
func (s *Shaper) State() State { return s.state }

// Restore goes back to a saved state of the same stage.
func (s *Shaper) Restore(state State) error {
	s.state = state
	return nil
}

// CarryFrom starts a new RL stage from the threshold that the last one ended
// with, if uadt.carry is set; otherwise it does nothing. The shaping step stays
// 0 in both cases.
func (s *Shaper) CarryFrom(previous State) error {
	return nil
}
