package coordinator

import (
	"context"

	"github.com/uadt-train/uadt-train/rollout"
)

// Source is a deterministic cursor over the questions of a stage. It is used
// from one goroutine at a time.
type Source interface {
	// Next returns the next question and the epoch (from 0) it belongs to. It
	// goes on for ever, epoch after epoch; an error ends the run.
	Next(ctx context.Context) (question rollout.Question, epoch int, err error)
	// State returns the position of the cursor; [Source.Restore] with it makes
	// Next return the same questions again. It is kept in checkpoints.
	State() ([]byte, error)
	// Restore moves the cursor to a position that State returned.
	Restore(state []byte) error
}
