package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/internal/coordinator"
	"github.com/uadt-train/uadt-train/rollout"
)

// Exit codes, as docs/cli.md lists them.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitStopped     = 3
	exitUnreachable = 4
	exitInterrupted = 130
)

// usageError is a command line that cannot be meant.
type usageError struct{ err error }

// Error implements error.
func (e *usageError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// unreachableError is a fleet, bus or trainer that could not be reached.
type unreachableError struct {
	what string
	err  error
}

// Error implements error.
func (e *unreachableError) Error() string { return fmt.Sprintf("cannot reach %s: %v", e.what, e.err) }

// Unwrap returns the cause.
func (e *unreachableError) Unwrap() error { return e.err }

// exit says what went wrong on stderr and maps it to a code.
func (m *Main) exit(err error, w *watch) int {
	if err == nil {
		return exitDone
	}
	var usage *usageError
	switch {
	case w.interrupted.Load() >= 2 && errors.Is(context.Cause(w.work), errInterrupted):
		fmt.Fprintln(m.Stderr, "uadt-train: interrupted twice; the run can be resumed")
		return exitInterrupted
	case errors.Is(err, coordinator.ErrStopped):
		fmt.Fprintln(m.Stderr, "uadt-train:", err)
		return exitStopped
	case errors.As(err, &usage), errors.Is(err, configs.ErrInvalid):
		fmt.Fprintln(m.Stderr, "uadt-train:", err)
		return exitUsage
	case unreachable(err):
		fmt.Fprintln(m.Stderr, "uadt-train:", err)
		return exitUnreachable
	}
	fmt.Fprintln(m.Stderr, "uadt-train:", err)
	return exitFailed
}

// unreachable says whether err comes of a dependency that did not answer: one
// that could not be dialled, a bus that stayed silent, or too few servers that
// took the weights.
func unreachable(err error) bool {
	var away *unreachableError
	var quorum *rollout.QuorumError
	return errors.As(err, &away) || errors.As(err, &quorum) || errors.Is(err, bus.ErrTimeout)
}
