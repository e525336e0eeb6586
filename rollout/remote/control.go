package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
)

// Schemas of the control messages. All are JSON objects with a version field,
// decoded strictly: an unknown key is an error.
const (
	SchemaJob     = "uadt.job/1"
	SchemaDropped = "uadt.dropped/1"
	SchemaPolicy  = "uadt.policy/1"
	SchemaReport  = "uadt.worker-report/1"
)

// controlVersion is the version of every control message.
const controlVersion = 1

// ErrControl is wrapped by every error about bytes that are not the control
// message they should be.
var ErrControl = errors.New("not a control message")

// jobMessage asks for a group.
type jobMessage struct {
	Version int         `json:"version"`
	Job     rollout.Job `json:"job"`
}

// droppedMessage answers a job that will have no group.
type droppedMessage struct {
	Version int            `json:"version"`
	Job     rollout.JobID  `json:"job"`
	Reason  rollout.Reason `json:"reason"`
	Error   string         `json:"error"`
}

// policyMessage is the value "policy" of a run: who coordinates, and the weights
// that the servers should hold. Offer is nil until there are any.
type policyMessage struct {
	Version     int            `json:"version"`
	Incarnation uint64         `json:"incarnation"`
	Offer       *rollout.Offer `json:"offer"`
}

// reportMessage is what a worker says of itself twice a second and after every
// change.
type reportMessage struct {
	Version int       `json:"version"`
	Worker  string    `json:"worker"`
	Time    time.Time `json:"time"` // by the worker's clock; for people
	Servers []string  `json:"servers"`
	// Revision is that of the value "policy" whose offer the worker has dealt
	// with, 0 if none yet; Adopted and Error say how that went.
	Revision uint64          `json:"revision"`
	Adopted  rollout.Adopted `json:"adopted"`
	Error    string          `json:"error"`
	Running  int             `json:"running"`  // jobs being sampled
	Stopping bool            `json:"stopping"` // the last report of this worker
}

// encodeControl wraps a control message for the bus.
func encodeControl(schema string, value any) (bus.Message, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return bus.Message{}, fmt.Errorf("%s: %w", schema, err)
	}
	return bus.Message{Schema: schema, Data: data}, nil
}

// decodeControl reads a control message whose version field is checked before
// the rest, so that a newer one is refused by its version and not by a key.
func decodeControl(schema string, m bus.Message, into any) error {
	if m.Schema != schema {
		return fmt.Errorf("%w: schema %q, want %q", ErrControl, m.Schema, schema)
	}
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(m.Data, &head); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrControl, schema, err)
	}
	if head.Version != controlVersion {
		return fmt.Errorf("%w: %s: version %d, this program reads %d", ErrControl, schema, head.Version, controlVersion)
	}
	if err := bus.DecodeStrict(m.Data, into); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrControl, schema, err)
	}
	return nil
}

// decodeJob reads a job and checks what the worker relies on.
func decodeJob(m bus.Message) (rollout.Job, error) {
	var message jobMessage
	if err := decodeControl(SchemaJob, m, &message); err != nil {
		return rollout.Job{}, err
	}
	job := message.Job
	if err := bus.CheckName(string(job.ID)); err != nil {
		return rollout.Job{}, fmt.Errorf("%w: job id: %w", ErrControl, err)
	}
	if job.Sampling.Traces < 1 || job.Sampling.Traces > maxTraces || job.Sampling.MaxTokens < 1 {
		return rollout.Job{}, fmt.Errorf("%w: job %s asks for %d traces of at most %d tokens",
			ErrControl, job.ID, job.Sampling.Traces, job.Sampling.MaxTokens)
	}
	return job, nil
}

// maxTraces is the largest group: the seeds of one job are 1,024 apart from
// those of the next.
const maxTraces = 1024
