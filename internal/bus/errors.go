package bus

import "errors"

// What callers may want to tell apart. Errors of this package wrap them and
// say what was asked for, where, and how long was waited.
var (
	// ErrNotFound: no value under the key.
	ErrNotFound = errors.New("no such value on the bus")
	// ErrFull: a stream stayed at its size limit until the deadline; whoever
	// should have purged it did not.
	ErrFull = errors.New("bus stream is full")
	// ErrTimeout: the bus did not answer before the deadline.
	ErrTimeout = errors.New("bus did not answer in time")
	// ErrCorrupt: bytes from the bus do not match their checksum or manifest.
	ErrCorrupt = errors.New("corrupt value on the bus")
	// ErrTooLarge: a message over the limit of its kind.
	ErrTooLarge = errors.New("message is too large for the bus")
	// ErrHeld: another holder has the lease and kept it until the deadline.
	ErrHeld = errors.New("lease is held")
	// ErrLost: the lease expired or was taken over.
	ErrLost = errors.New("lease was lost")
	// ErrSuperseded: a coordinator of a higher incarnation has the run.
	ErrSuperseded = errors.New("a newer coordinator has taken over")
	// ErrName: a run, key or kind that cannot be part of a subject.
	ErrName = errors.New("not a bus name")
	// ErrDenied: the connection's role may not do that.
	ErrDenied = errors.New("denied by the bus")
	// ErrOpen: a listener beyond loopback without credentials.
	ErrOpen = errors.New("bus would listen beyond loopback without credentials")
)
