package coordinator

import (
	"context"
	"errors"
)

// Coordinator runs one run. It is made by [New] and used once.
type Coordinator struct {
	o Options
}

// Result says how far a run came.
type Result struct {
	Step       int    // global steps done
	Digest     string // SHA-256 over the last checkpointed weights
	Checkpoint string // directory of the last sealed checkpoint
	Counts     Counts
}

// New checks options, all problems reported together, and returns a coordinator
// that has touched nothing yet.
func New(options Options) (*Coordinator, error) {
	o := options.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	return &Coordinator{o: o}, nil
}

// Run executes the stages to their end. It obeys two contexts: when admit ends,
// no further batch is begun, what was admitted is drained and trained, a
// checkpoint is sealed and Run returns an error that wraps [ErrStopped]; when
// ctx ends, Run returns at once with its cause. Both leave a resumable run.
func (c *Coordinator) Run(ctx, admit context.Context) (Result, error) {
	return Result{}, errors.New("not run yet")
}
