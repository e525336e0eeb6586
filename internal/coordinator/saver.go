package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// saver takes the checkpoints of one stage, one at a time: the snapshot at
// once, the rest while training goes on.
type saver struct {
	c     *Coordinator
	stage Stage

	opened   string // directory of the checkpoint being written
	hands    *crew  // of the checkpoint being written; nil when there is none
	at       int    // step of the stage of the last checkpoint begun
	snapshot time.Duration

	mu   sync.Mutex
	last sealed
}

// sealed is a finished checkpoint.
type sealed struct {
	dir   string
	state State
}

// request is one checkpoint to take.
type request struct {
	step      int // of the stage
	state     State
	reference *trainer.Reference
	pin       bool
	// complete waits until everything that the checkpoint builds upon is durable
	// and adds to state what is known only then.
	complete func(ctx context.Context, state *State) error
}

// begin waits for the checkpoint before, takes the snapshot and returns; the
// rest is done by a goroutine that wait waits for.
func (s *saver) begin(ctx context.Context, q request) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	started := s.c.o.Parts.Now()
	parts, limits, global := s.c.o.Parts, s.c.o.Limits, q.state.Step
	var dir string
	err := bounded(ctx, await{fmt.Sprintf("checkpoint %d, its directory", global), limits.Store, "the disk of the run directory"},
		func(ctx context.Context) (err error) {
			dir, err = parts.Checkpoints.OpenCheckpoint(ctx, global)
			return err
		})
	if err != nil {
		return err
	}
	var pending trainer.Pending
	err = bounded(ctx, await{fmt.Sprintf("trainer, snapshot of checkpoint %d", global), limits.Save, "the trainer's log"},
		func(ctx context.Context) (err error) {
			pending, err = parts.Keeper.Save(ctx, dir)
			return err
		})
	if err != nil {
		return err
	}
	s.at, s.snapshot, s.opened = q.step, parts.Now().Sub(started), dir
	s.hands = newCrew(ctx)
	s.hands.run(func(ctx context.Context) error { return s.finish(ctx, q, pending, started) })
	return nil
}

// finish makes the snapshot durable and seals it.
func (s *saver) finish(ctx context.Context, q request, pending trainer.Pending, started time.Time) error {
	parts, limits, state := s.c.o.Parts, s.c.o.Limits, q.state
	err := bounded(ctx, await{fmt.Sprintf("trainer, checkpoint %d", state.Step), limits.Save, "the trainer's log and its disk"},
		func(ctx context.Context) (err error) {
			state.Saved, err = pending.Wait(ctx)
			return err
		})
	if err != nil {
		return err
	}
	if state.Saved.Step != state.Update {
		return fmt.Errorf("checkpoint %d: trainer saved update %d, want %d", state.Step, state.Saved.Step, state.Update)
	}
	if err := q.complete(ctx, &state); err != nil {
		return err
	}
	state.Reference, state.ReferenceHere = relative(q.reference, filepath.Dir(s.opened))
	document, err := json.MarshalIndent(state, "", "  ")
	if err != nil {
		return fmt.Errorf("checkpoint %d: %w", state.Step, err)
	}
	var dir string
	err = bounded(ctx, await{fmt.Sprintf("checkpoint %d, its manifest", state.Step), limits.Store, "the disk of the run directory"},
		func(ctx context.Context) (err error) {
			dir, err = parts.Checkpoints.SealCheckpoint(ctx, state.Step, document, q.pin)
			return err
		})
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.last = sealed{dir: dir, state: state}
	s.mu.Unlock()
	parts.Sink.Emit(telemetry.CheckpointSaved{Step: state.Step, Path: dir, Seconds: parts.Now().Sub(started).Seconds()})
	return nil
}

// wait returns once no checkpoint is being written.
func (s *saver) wait(context.Context) error {
	if s.hands == nil {
		return nil
	}
	err := s.hands.wait()
	s.hands = nil
	return err
}

// sealed returns the last finished checkpoint.
func (s *saver) sealed() sealed {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// took returns the time of the snapshot since it was last asked, in seconds.
func (s *saver) took() float64 {
	d := s.snapshot.Seconds()
	s.snapshot = 0
	return d
}

// save takes a checkpoint of the step just done, unless there is one.
func (r *ring) save(ctx context.Context) error {
	m := r.done
	if m == r.saver.at || m == r.at.step {
		return nil
	}
	shaper := r.shaper.State()
	state := State{
		Version: stateVersion, Seed: r.o.Seed, Step: r.global(m), Stage: r.stage.Name, StageStep: m,
		Update: r.update, BadSteps: r.badSteps, Shaper: &shaper,
		Counts: Counts{Trained: r.trained, Dropped: r.refused},
	}
	last := min(m+r.o.RL.MaxStaleness, r.stage.Steps)
	return r.saver.begin(ctx, request{step: m, state: state, reference: r.start.reference, pin: m == r.stage.Steps, complete: func(ctx context.Context, state *State) error {
		b := r.board
		err := b.wait(ctx, func() bool { return b.durable >= last && b.evaluated >= m-1 })
		if err != nil {
			return err
		}
		state.Policy = rollout.Policy{Incarnation: r.o.Incarnation, Version: r.base + m, Digest: state.Saved.Digest}
		end := b.end(last)
		state.Cursor, state.Refills = end.cursor, end.refills
		state.Ahead, state.Durable = last, r.durable(m, last)
		c := &state.Counts
		c.Admitted, c.Dropped, c.InFlight = end.admitted, c.Dropped+end.dropped, len(state.Durable)
		if !c.Closed() {
			return &CountError{Counts: *c}
		}
		b.forget(m)
		return nil
	}})
}

// durable lists the groups of the batches after m up to last.
func (r *ring) durable(m, last int) []rollout.JobID {
	var jobs []rollout.JobID
	for n := m + 1; n <= last; n++ {
		jobs = append(jobs, r.board.end(n).groups...)
	}
	return jobs
}

// relative returns r with its path relative to folder, and true, when it lies
// below it.
func relative(r *trainer.Reference, folder string) (*trainer.Reference, bool) {
	if r == nil {
		return nil, false
	}
	path, err := filepath.Rel(folder, r.Path)
	if err != nil || !filepath.IsLocal(path) {
		return r, false
	}
	return &trainer.Reference{Path: path, Digest: r.Digest}, true
}

// reference undoes relative.
func (s State) reference(folder string) *trainer.Reference {
	if !s.ReferenceHere || s.Reference == nil {
		return s.Reference
	}
	return &trainer.Reference{Path: filepath.Join(folder, s.Reference.Path), Digest: s.Reference.Digest}
}
