package vllm

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/uadt-train/uadt-train/rollout"
)

// StatusError is an answer of a server that is not 200.
type StatusError struct {
	Server  string
	Route   string
	Status  int
	Message string // the server's own words, cut
}

// Error implements error.
func (e *StatusError) Error() string {
	return fmt.Sprintf("server %s: %s: status %d: %s", e.Server, e.Route, e.Status, e.Message)
}

// refusal says whether the request itself is at fault, so that asking another
// server is useless. An unknown model or a closed door is a fault of that
// server, not of the request; too many requests is a matter of time.
func (e *StatusError) refusal() bool {
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusUpgradeRequired:
		return false
	}
	return e.Status >= 400 && e.Status < 500
}

// GarbageError says that a server answered 200 with something that is no
// answer to the request.
type GarbageError struct {
	Server string
	Err    error
}

// Error implements error.
func (e *GarbageError) Error() string {
	return fmt.Sprintf("server %s: the answer does not fit the request: %v", e.Server, e.Err)
}

// Unwrap returns the cause.
func (e *GarbageError) Unwrap() error { return e.Err }

// DigestError says that a server loaded other weights than were offered: the
// directory was changed after it was published, or is another one on that host.
type DigestError struct {
	Server string
	Policy rollout.Policy // offered, with the digest of its weights
	Loaded string         // digest that the server reports
}

// Error implements error.
func (e *DigestError) Error() string {
	return fmt.Sprintf("server %s: loaded weights %s for policy %s, want %s", e.Server, e.Loaded, e.Policy, e.Policy.Digest)
}

// The causes with which requests in flight are ended because of what their
// server does; they are retried elsewhere.
var (
	errDead    = errors.New("the server is dead")
	errHung    = errors.New("the server makes no progress")
	errSlow    = errors.New("the server is far slower than the others")
	errTimeout = errors.New("the request took longer than the request timeout")
)

// ErrClosed is returned by a fleet after Close.
var ErrClosed = errors.New("fleet is closed")
