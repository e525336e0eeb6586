package uadt

import (
	"errors"
	"fmt"
	"maps"
)

// stateVersion changes when the meaning of a field of State does.
const stateVersion = 1

// State is everything of a shaper that influences the next batch. It survives
// JSON to the bit and is part of the checkpoint.
type State struct {
	Version int     `json:"version"`
	Step    int     `json:"step"` // s of the next batch
	Tau     float64 `json:"tau"`  // nats
	Sigma   float64 `json:"sigma"`
	Seeded  bool    `json:"seeded"` // false until a batch with a counted trace was shaped
	// Estimator is that of the entropies in Tau; mixing two in one run is refused.
	Estimator Estimator `json:"estimator"`
	// Controllers holds the state of rules that adapt, by name; none do so far.
	Controllers map[string]float64 `json:"controllers,omitempty"`
}

// State returns a copy of the state, to be saved with the checkpoint.
func (s *Shaper) State() State {
	state := s.state
	state.Controllers = maps.Clone(state.Controllers)
	return state
}

// Restore goes back to a saved state of the same stage. A state of another
// version or estimator, or one that could not have been saved, is refused and
// the shaper left as it was.
func (s *Shaper) Restore(state State) error {
	if err := s.fits(state); err != nil {
		return fmt.Errorf("restore uadt state: %w", err)
	}
	state.Controllers = maps.Clone(state.Controllers)
	s.state = state
	return nil
}

// CarryFrom starts a new RL stage from the threshold that the last one ended
// with, if uadt.carry is set; otherwise it does nothing. The shaping step stays
// 0 in both cases.
func (s *Shaper) CarryFrom(previous State) error {
	if !s.setup.Options.Carry {
		return nil
	}
	if err := s.fits(previous); err != nil {
		return fmt.Errorf("carry uadt state into a new stage: %w", err)
	}
	s.state.Tau, s.state.Sigma, s.state.Seeded = previous.Tau, previous.Sigma, previous.Seeded
	return nil
}

func (s *Shaper) fits(state State) error {
	var problems []error
	if state.Version != stateVersion {
		problems = append(problems, fmt.Errorf("version %d, want %d", state.Version, stateVersion))
	}
	if state.Estimator != s.setup.Options.Entropy {
		problems = append(problems, fmt.Errorf("entropies of estimator %q, this run has %q: they are never mixed", state.Estimator, s.setup.Options.Entropy))
	}
	if state.Step < 0 {
		problems = append(problems, fmt.Errorf("step %d, want at least 0", state.Step))
	}
	if !finite(state.Tau) || !finite(state.Sigma) || state.Sigma < 0 {
		problems = append(problems, fmt.Errorf("tau %v, sigma %v: want finite numbers, sigma at least 0", state.Tau, state.Sigma))
	}
	if !state.Seeded && (state.Tau != 0 || state.Sigma != 0) {
		problems = append(problems, fmt.Errorf("tau %v, sigma %v of a state that was never seeded", state.Tau, state.Sigma))
	}
	return errors.Join(problems...)
}
