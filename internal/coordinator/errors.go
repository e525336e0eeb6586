package coordinator

import (
	"errors"
	"fmt"
	"time"
)

// ErrStopped is returned by Run when it was asked to stop: everything admitted
// was drained, a checkpoint is sealed, and the run can be resumed.
var ErrStopped = errors.New("stopped, can be resumed")

// TimeoutError says that something awaited did not come in time.
type TimeoutError struct {
	What   string        // what was awaited, such as "trainer step 12"
	Waited time.Duration // the deadline that passed
	Look   string        // where to look for the cause
}

// Error implements error.
func (e *TimeoutError) Error() string {
	return fmt.Sprintf("no answer from %s within %s; look at %s", e.What, e.Waited, e.Look)
}

// EmptyStepError says that no group of a step was left to train.
type EmptyStepError struct {
	Stage    string
	Step     int // of the stage
	Admitted int
	Reasons  map[string]int // dropped groups by reason
}

// Error implements error.
func (e *EmptyStepError) Error() string {
	return fmt.Sprintf("stage %s step %d: none of %d admitted questions can be trained, dropped %v",
		e.Stage, e.Step, e.Admitted, e.Reasons)
}

// BadStepsError says that too many optimizer updates in a row were refused.
// The run can be resumed.
type BadStepsError struct {
	Count int
	Last  error // the last refusal, a *trainer.BadStepError
}

// Error implements error.
func (e *BadStepsError) Error() string {
	return fmt.Sprintf("%d optimizer updates refused in a row (trainer.max_bad_steps): %v", e.Count, e.Last)
}

// Unwrap returns the last refusal.
func (e *BadStepsError) Unwrap() error { return e.Last }

// CountError says that the books do not close: a defect of the coordinator.
type CountError struct{ Counts Counts }

// Error implements error.
func (e *CountError) Error() string {
	return fmt.Sprintf("admitted %d is not trained %d + dropped %d + in flight %d",
		e.Counts.Admitted, e.Counts.Trained, e.Counts.Dropped, e.Counts.InFlight)
}

// ResumeError says that a checkpoint does not fit the run that resumes it.
type ResumeError struct {
	Point string // directory of the checkpoint
	Err   error
}

// Error implements error.
func (e *ResumeError) Error() string { return fmt.Sprintf("resume from %s: %v", e.Point, e.Err) }

// Unwrap returns the cause.
func (e *ResumeError) Unwrap() error { return e.Err }
