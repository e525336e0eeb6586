package rollout

import (
	"context"
	"fmt"
	"time"
)

// Fleet is the seam to everything that samples: one server, many, or workers
// on the far side of a bus. All methods may be called from several goroutines.
// The conformance suite is rollout/rollouttest.
type Fleet interface {
	// Sample returns the group of job, sampled by exactly job.Policy. A job that
	// cannot be answered fails with a *Dropped that says why; ctx errors are
	// returned as they are. The same job gives the same group (same seeds) if
	// it is sampled again, up to the engine's own determinism.
	Sample(ctx context.Context, job Job) (Group, error)
	// Commit tells the fleet that the step which used these jobs is durable, so
	// that whatever is kept for redelivery may be forgotten.
	Commit(ctx context.Context, jobs []JobID) error
	// Adopt makes the offered weights live on the servers and reports how each
	// one fared. It fails with a *QuorumError when too few did.
	Adopt(ctx context.Context, offer Offer) (Adopted, error)
}

// Reason says why a group was dropped; it is a column of the ledger.
type Reason string

// The reasons for which a group or a trace is dropped.
const (
	ReasonDeadline     Reason = "deadline"      // not answered before the job's deadline
	ReasonRefused      Reason = "refused"       // the server refused the request: asking again is useless
	ReasonUnavailable  Reason = "unavailable"   // no server could answer within its retries
	ReasonGarbage      Reason = "garbage"       // the answer does not fit the request
	ReasonStale        Reason = "stale"         // sampled by another policy than the job's
	ReasonEmpty        Reason = "empty"         // a trace without tokens
	ReasonAborted      Reason = "aborted"       // a trace that the server aborted
	ReasonZeroVariance Reason = "zero_variance" // dynamic sampling: all rewards equal
	ReasonEncoding     Reason = "encoding"      // the trainer expands the prompt otherwise than the server
)

// Dropped is a group that will not be trained: a value with a reason, so that
// admitted = trained + dropped + in flight always closes.
type Dropped struct {
	Job    JobID
	Reason Reason
	Err    error // the cause; may be nil
}

// Error implements error.
func (d *Dropped) Error() string {
	if d.Err == nil {
		return fmt.Sprintf("job %s dropped: %s", d.Job, d.Reason)
	}
	return fmt.Sprintf("job %s dropped: %s: %v", d.Job, d.Reason, d.Err)
}

// Unwrap returns the cause.
func (d *Dropped) Unwrap() error { return d.Err }

// Transport is how the weights of an offer reach a server.
type Transport string

// The ways in which weights travel. None of them is a bus message.
const (
	ByDirectory Transport = "directory" // a Hugging Face directory that the servers can read
	ByLoRA      Transport = "lora"      // an adapter directory, loaded under a fresh name
	ByNCCL      Transport = "nccl"      // a broadcast that both sides take part in
	AsServed    Transport = "as_served" // nothing travels: the servers hold the weights already
)

// Offer announces new weights. It is not yet a transfer: Fleet.Adopt starts it.
type Offer struct {
	Policy    Policy    `json:"policy"`
	Transport Transport `json:"transport"`
	Path      string    `json:"path,omitempty"` // directory or adapter directory, absolute
	// Base is the directory of the weights that an adapter is added to, which
	// servers must have been started on; empty for other transports.
	Base string `json:"base,omitempty"`
	// NCCL says where the broadcast is asked for; nil otherwise.
	NCCL *NCCLOffer `json:"nccl,omitempty"`
}

// NCCLOffer is the address of a trainer that sends weights by broadcast. Whoever
// controls a server asks it for a group of the trainer and that server, and has
// the server receive while the trainer sends.
type NCCLOffer struct {
	URL   string `json:"url"`   // without a path
	Token string `json:"token"` // that must be shown there
}

// Adopted reports the outcome of one Adopt, server by server.
type Adopted struct {
	Policy  Policy          `json:"policy"`
	Servers []ServerAdopted `json:"servers"`
	Seconds float64         `json:"seconds"` // from pause to resume of the slowest server
}

// ServerAdopted is how one server fared. Err is empty on success.
type ServerAdopted struct {
	Server  string  `json:"server"`
	Seconds float64 `json:"seconds"`
	Err     string  `json:"error,omitempty"`
}

// QuorumError says that too few servers adopted a policy for the run to go on.
type QuorumError struct {
	Adopted Adopted
	Need    int
	Waited  time.Duration
}

// Error implements error.
func (e *QuorumError) Error() string {
	ok := 0
	first := ""
	for _, s := range e.Adopted.Servers {
		if s.Err == "" {
			ok++
		} else if first == "" {
			first = fmt.Sprintf("; server %s: %s", s.Server, s.Err)
		}
	}
	return fmt.Sprintf("policy %s adopted by %d of %d servers, need %d, after %s%s",
		e.Adopted.Policy, ok, len(e.Adopted.Servers), e.Need, e.Waited.Round(time.Millisecond), first)
}
