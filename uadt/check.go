package uadt

import (
	"errors"
	"fmt"
)

// ErrEmptyBatch is wrapped by the error of a batch without groups.
var ErrEmptyBatch = errors.New("batch without groups")

// check reports everything in batch that cannot be computed with.
func check(batch Batch) error {
	if len(batch.Groups) == 0 {
		return ErrEmptyBatch
	}
	var problems []error
	for q, g := range batch.Groups {
		if len(g.Traces) == 0 {
			problems = append(problems, fmt.Errorf("group %d (%s): no traces", q, g.ID))
		}
		for i, t := range g.Traces {
			if err := checkTrace(t); err != nil {
				problems = append(problems, fmt.Errorf("group %d (%s) trace %d: %w", q, g.ID, i, err))
			}
		}
	}
	return errors.Join(problems...)
}

func checkTrace(t Trace) error {
	var problems []error
	if t.Length < 0 {
		problems = append(problems, fmt.Errorf("length %d: want at least 0", t.Length))
	}
	if !t.Missing && !finite(t.Reward) {
		problems = append(problems, fmt.Errorf("reward %v: want a finite number, or missing", t.Reward))
	}
	if !t.Missing && !finite(t.Penalty) {
		problems = append(problems, fmt.Errorf("penalty %v: want a finite number", t.Penalty))
	}
	if dropReason(t) != NotDropped {
		return errors.Join(problems...) // nobody looks at its entropies
	}
	if t.Entropies == nil {
		if !finite(t.H) || t.H < -roundingSlack {
			problems = append(problems, fmt.Errorf("entropy %v: want a finite number of at least 0", t.H))
		}
		return errors.Join(problems...)
	}
	if len(t.Entropies) != t.Length {
		problems = append(problems, fmt.Errorf("%d token entropies, length %d", len(t.Entropies), t.Length))
	}
	if _, _, err := MeanEntropy(t.Entropies, t.Span); err != nil {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// dropReason says why t takes no part, if it does not.
func dropReason(t Trace) DropReason {
	switch {
	case t.Aborted:
		return DroppedAborted
	case t.Length == 0:
		return DroppedEmpty
	}
	return NotDropped
}
