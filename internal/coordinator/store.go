package coordinator

import (
	"context"

	"github.com/uadt-train/uadt-train/rollout"
)

// Store is what the ring asks of the run directory beside checkpoints. Steps
// are global. Every write is durable when it returns and may be repeated: a
// step that is executed again after a resume replaces what it wrote before.
// Methods are called from several goroutines.
type Store interface {
	// PutRollout makes a rollout batch durable, its manifest last: groups in job
	// order exactly as the fleet returned them, and meta, a JSON document of the
	// coordinator's (jobs, scores, cursor).
	PutRollout(ctx context.Context, step int, meta []byte, groups []rollout.Group) error
	// Rollout returns what PutRollout wrote. It fails with an error that wraps
	// fs.ErrNotExist when there is no complete batch of step.
	Rollout(ctx context.Context, step int) (meta []byte, groups []rollout.Group, err error)
	// PutLedger writes the ledger of a step: a map a trace, from column name to
	// string, bool, int64, float64 or []string; an absent key is null. arrays
	// holds per-token values of all traces one after the other, in row order
	// ("entropy", "old_logprobs", "reference_logprobs", "advantages"), and
	// "offsets" with one more element than there are rows.
	PutLedger(ctx context.Context, step int, rows []map[string]any, arrays map[string][]float32) error
	// PutMetrics writes one line of metrics: a value is float64, int64 or string,
	// a non-finite one is absent. kind is "step" or "eval"; the pair (kind, step)
	// is unique and a later line replaces an earlier one.
	PutMetrics(ctx context.Context, kind string, step int, values map[string]any) error
}

// Checkpoints keeps checkpoints by global step.
type Checkpoints interface {
	// OpenCheckpoint returns an empty directory, absolute, that the trainer's
	// keeper may fill. What an unsealed checkpoint of the same step left behind
	// is removed.
	OpenCheckpoint(ctx context.Context, step int) (dir string, err error)
	// SealCheckpoint adds state (a JSON document) and then, last and atomically,
	// the manifest, and returns where the checkpoint is to be found from now on.
	// A pinned checkpoint is never removed: it is a stage's result or reference.
	SealCheckpoint(ctx context.Context, step int, state []byte, pin bool) (dir string, err error)
}

// Point is a sealed checkpoint to resume from.
type Point struct {
	Dir   string // as SealCheckpoint returned it
	State []byte // the state that was sealed
}
