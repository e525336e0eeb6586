package remote

import (
	"errors"
	"fmt"
	"time"

	"github.com/uadt-train/uadt-train/trainer"
)

// ErrNotBegun is returned by every call before Begin has succeeded.
var ErrNotBegun = errors.New("no stage has begun")

// ErrClosed is returned by every call after Close.
var ErrClosed = errors.New("trainer is closed")

// ErrFrame is wrapped by every error about bytes that are not the frame they
// should be.
var ErrFrame = errors.New("not a trainer frame")

// LostError says that the set of ranks that a stage began with cannot be used
// any more. Begin starts anew.
type LostError struct {
	Rank     int // the first rank known to be at fault
	Instance string
	Why      string
}

// Error implements error.
func (e *LostError) Error() string {
	return fmt.Sprintf("trainer rank %d of instance %s is lost: %s; begin again at the resume point", e.Rank, e.Instance, e.Why)
}

// TimeoutError says what a wait was for, how long it was, and where to look.
type TimeoutError struct {
	What   string
	Waited time.Duration
	Look   string
	Err    error // the deadline that ended it
}

// Error implements error.
func (e *TimeoutError) Error() string {
	return fmt.Sprintf("waited %s for %s: %v; see %s", e.Waited.Round(time.Millisecond), e.What, e.Err, e.Look)
}

// Unwrap returns the deadline's error.
func (e *TimeoutError) Unwrap() error { return e.Err }

// RankError is an error that a rank reported, other than those that package
// trainer has types for.
type RankError struct {
	Rank    int
	Command string
	Type    string // name of the Python exception
	Message string
}

// Error implements error.
func (e *RankError) Error() string {
	return fmt.Sprintf("trainer rank %d: %s: %s: %s", e.Rank, e.Command, e.Type, e.Message)
}

// failure is the error field of an answer.
type failure struct {
	Type    string   `json:"type"`
	Message string   `json:"message"`
	Have    int      `json:"have"`
	Got     int      `json:"got"`
	Step    int      `json:"step"`
	What    string   `json:"what"`
	Groups  []string `json:"groups"`
	Traces  []string `json:"traces"`
	Group   string   `json:"group"`
	Reason  string   `json:"reason"`
}

// fatal says whether the rank ended after this failure: what it was in the
// middle of is not known, and other ranks may wait for it in vain.
func (f *failure) fatal() bool {
	switch f.Type {
	case "CommandError", "NotBegunError", "StepOrderError", "IncarnationError", "BadStepError", "GroupError",
		"FrameError", "ImageError", "CheckpointError", "ArchitectureError", "BusError",
		"OSError", "FileNotFoundError", "PermissionError", "NotADirectoryError", "FileExistsError", "IsADirectoryError":
		return false
	}
	return true
}

// typed turns a failure into the error that callers decide by.
func (f *failure) typed(rank int, command string) error {
	switch f.Type {
	case "StepOrderError":
		return &trainer.StepOrderError{Have: f.Have, Got: f.Got}
	case "BadStepError":
		return &trainer.BadStepError{Step: f.Step, What: f.What, Groups: f.Groups, Traces: f.Traces}
	case "GroupError":
		return &trainer.GroupError{Group: f.Group, Err: errors.New(f.Reason)}
	}
	return &RankError{Rank: rank, Command: command, Type: f.Type, Message: f.Message}
}
