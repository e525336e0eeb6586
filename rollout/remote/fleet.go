package remote

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
)

// ErrClosed is returned by calls on a fleet that was closed.
var ErrClosed = errors.New("remote fleet is closed")

// keyPolicy is the name of the value that workers watch.
const keyPolicy = "policy"

// Fleet is the coordinator's side of rollout.Fleet over the bus.
type Fleet struct {
	options FleetOptions
	jobs    *bus.Queue
	traces  *bus.Log
	values  *bus.Values

	cancel context.CancelCauseFunc
	ctx    context.Context // ends with Close
	group  sync.WaitGroup

	adopting sync.Mutex // one Adopt at a time

	mu      sync.Mutex
	flights map[rollout.JobID]*flight // jobs in flight: the fence
	stored  map[rollout.JobID]bool    // answered, not yet committed
	busy    map[rollout.JobID]*errand // being taken off the bus: may not be put on it yet
	offered *rollout.Policy           // the newest offer
	workers map[string]*workerState
	changed chan struct{} // closed and replaced when workers or flights change
	stats   Stats
}

var _ rollout.Fleet = (*Fleet)(nil)

// Stats count what the fence kept out.
type Stats struct {
	Discarded int // answers to jobs that were not in flight
	Late      int // answers of older incarnations
	Corrupt   int // answers that could not be read
}

// flight is a job for whose answer somebody waits.
type flight struct {
	policy  rollout.Policy
	waiters int
	done    chan struct{}
	message bus.Message
}

// errand is one or more purges of a job that run.
type errand struct {
	count int
	done  chan struct{}
}

// NewFleet purges what older incarnations of the run left on the bus, tells
// the workers who coordinates now, and listens for their answers until Close.
func NewFleet(ctx context.Context, options FleetOptions) (*Fleet, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	f := &Fleet{
		options: options, jobs: options.Conn.Queue(options.Scope),
		traces: options.Conn.Log(options.Scope, bus.Traces), values: options.Conn.Values(options.Scope.Run),
		flights: map[rollout.JobID]*flight{}, stored: map[rollout.JobID]bool{}, busy: map[rollout.JobID]*errand{},
		workers: map[string]*workerState{}, changed: make(chan struct{}),
	}
	purged, err := options.Conn.PurgeOlder(ctx, options.Scope)
	if err != nil {
		return nil, err
	}
	if purged > 0 {
		options.Log.Info("purged messages of older incarnations", "count", purged, "incarnation", options.Scope.Incarnation)
	}
	if _, err := f.announce(ctx, nil); err != nil {
		return nil, err
	}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	anyone := bus.Scope{Run: options.Scope.Run}
	f.follow("answers", options.Conn.Log(anyone, bus.Traces), "*", f.answered)
	f.follow("reports", options.Conn.Log(options.Scope, bus.Events), "worker.*", f.reported)
	return f, nil
}

// follow listens to a log until Close.
func (f *Fleet) follow(what string, log *bus.Log, pattern string, handle func(bus.Entry) error) {
	f.group.Go(func() {
		err := log.Follow(f.ctx, pattern, handle, func(err error) {
			f.mu.Lock()
			f.stats.Corrupt++
			f.mu.Unlock()
			f.options.Log.Warn("unreadable message passed over", "of", what, "error", err)
		})
		if !errors.Is(err, ErrClosed) {
			f.cancel(fmt.Errorf("remote fleet stopped listening for %s: %w", what, err))
		}
	})
}

// Close stops listening; every waiting call returns ErrClosed. Jobs stay on
// the bus for the next incarnation to purge.
func (f *Fleet) Close() {
	f.cancel(ErrClosed)
	f.group.Wait()
}

// Stats returns what was kept out so far.
func (f *Fleet) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stats
}

// Sample implements rollout.Fleet. It puts the job on the bus unless its answer
// is stored already, and waits for the first answer of a worker.
func (f *Fleet) Sample(ctx context.Context, job rollout.Job) (rollout.Group, error) {
	message, err := encodeControl(SchemaJob, jobMessage{Version: controlVersion, Job: job})
	if err != nil {
		return rollout.Group{}, err
	}
	inner, cancel := withDeadline(ctx, job.Deadline)
	defer cancel()
	entry, stored, err := f.admit(inner, job)
	if err != nil {
		return rollout.Group{}, f.failed(ctx, inner, job, err)
	}
	group, err := f.answer(inner, job, message, entry, stored)
	f.leave(job.ID, entry, err != nil)
	if err != nil {
		return rollout.Group{}, f.failed(ctx, inner, job, err)
	}
	return group, nil
}

// answer gets the stored answer of an admitted job, or asks the workers.
func (f *Fleet) answer(ctx context.Context, job rollout.Job, message bus.Message, entry *flight, stored bool) (rollout.Group, error) {
	if stored {
		answer, err := f.traces.Get(ctx, string(job.ID))
		if err == nil {
			return open(job, answer)
		}
		if !errors.Is(err, bus.ErrNotFound) {
			return rollout.Group{}, err
		}
	}
	if _, err := f.jobs.Put(ctx, string(job.ID), message); err != nil {
		return rollout.Group{}, err
	}
	select {
	case <-entry.done:
		return open(job, entry.message)
	case <-ctx.Done():
		return rollout.Group{}, context.Cause(ctx)
	case <-f.ctx.Done():
		return rollout.Group{}, context.Cause(f.ctx)
	}
}

// withDeadline bounds ctx by a job's deadline, if it has one.
func withDeadline(ctx context.Context, deadline time.Time) (context.Context, context.CancelFunc) {
	if deadline.IsZero() {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline)
}

// admit enters job into the table of jobs in flight; equal jobs share an entry.
func (f *Fleet) admit(ctx context.Context, job rollout.Job) (entry *flight, stored bool, err error) {
	for {
		f.mu.Lock()
		errand := f.busy[job.ID]
		if errand == nil {
			break
		}
		f.mu.Unlock()
		select {
		case <-errand.done:
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		}
	}
	defer f.mu.Unlock()
	if f.offered != nil && job.Policy.Older(*f.offered) {
		return nil, false, &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonStale,
			Err: fmt.Errorf("policy %s was offered, job wants %s", *f.offered, job.Policy)}
	}
	entry = f.flights[job.ID]
	if entry == nil {
		entry = &flight{policy: job.Policy, done: make(chan struct{})}
		f.flights[job.ID] = entry
	}
	entry.waiters++
	return entry, f.stored[job.ID], nil
}

// leave takes one waiter out of the table. If the job failed and nobody else
// waits, whatever there is of it leaves the bus: the job, because nobody wants
// its answer, and the answer, because asking again must not give it again.
func (f *Fleet) leave(id rollout.JobID, entry *flight, failed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	entry.waiters--
	if entry.waiters > 0 || f.flights[id] != entry {
		return
	}
	delete(f.flights, id)
	f.wake()
	if !failed || f.ctx.Err() != nil {
		return
	}
	delete(f.stored, id)
	f.errand(id, func(ctx context.Context) error {
		return errors.Join(f.jobs.Remove(ctx, string(id)), f.traces.Purge(ctx, string(id)))
	})
}

// wake tells everyone who waits for a change. f.mu is held.
func (f *Fleet) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// errand runs a purge of job id in the background; until it is done the job may
// not be put on the bus again. f.mu is held.
func (f *Fleet) errand(id rollout.JobID, purge func(context.Context) error) {
	e := f.busy[id]
	if e == nil {
		e = &errand{done: make(chan struct{})}
		f.busy[id] = e
	}
	e.count++
	f.group.Go(func() {
		ctx, cancel := context.WithTimeout(f.ctx, 10*time.Second)
		defer cancel()
		if err := purge(ctx); err != nil && f.ctx.Err() == nil {
			f.options.Log.Warn("job or answer stays on the bus", "job", id, "error", err)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if e.count--; e.count == 0 {
			delete(f.busy, id)
			close(e.done)
		}
	})
}

// failed names why a wait ended.
func (f *Fleet) failed(outer, inner context.Context, job rollout.Job, err error) error {
	var dropped *rollout.Dropped
	switch {
	case errors.As(err, &dropped):
		return err
	case outer.Err() != nil:
		return context.Cause(outer)
	case inner.Err() != nil: // the job's own deadline
		return &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonDeadline,
			Err: fmt.Errorf("no answer on the bus by %s (%d workers): %w", job.Deadline.Format(time.RFC3339Nano), len(f.Workers()), err)}
	}
	return fmt.Errorf("job %s: %w", job.ID, err)
}

// open reads the answer to job.
func open(job rollout.Job, message bus.Message) (rollout.Group, error) {
	drop := func(reason rollout.Reason, err error) error {
		return &rollout.Dropped{Job: job.ID, Reason: reason, Err: err}
	}
	switch message.Schema {
	case SchemaDropped:
		var d droppedMessage
		if err := decodeControl(SchemaDropped, message, &d); err != nil {
			return rollout.Group{}, drop(rollout.ReasonGarbage, err)
		}
		if d.Job != job.ID || d.Reason == "" {
			return rollout.Group{}, drop(rollout.ReasonGarbage, fmt.Errorf("answer drops job %q for reason %q", d.Job, d.Reason))
		}
		return rollout.Group{}, drop(d.Reason, errors.New(d.Error))
	case SchemaGroup:
		group, err := DecodeGroup(message.Data)
		if err != nil {
			return rollout.Group{}, drop(rollout.ReasonGarbage, err)
		}
		if err := group.Check(job); err != nil {
			return rollout.Group{}, err
		}
		return group, nil
	}
	return rollout.Group{}, drop(rollout.ReasonGarbage, fmt.Errorf("answer of schema %q", message.Schema))
}

// answered takes an answer from the bus to whoever waits for it.
func (f *Fleet) answered(e bus.Entry) error {
	id := rollout.JobID(e.Key)
	mine := f.options.Scope.Incarnation
	f.mu.Lock()
	defer f.mu.Unlock()
	entry := f.flights[id]
	switch {
	case e.Incarnation > mine: // we are the older one; our lease says so too
		return nil
	case e.Incarnation < mine:
		f.stats.Late++
	case entry == nil:
		f.stats.Discarded++
	default:
		f.stored[id] = true
		select {
		case <-entry.done: // a second writer cannot be: the log is create-only
		default:
			entry.message = e.Message
			close(entry.done)
		}
		return nil
	}
	f.options.Log.Info("answer discarded", "job", e.Key, "incarnation", e.Incarnation)
	log := f.options.Conn.Log(bus.Scope{Run: f.options.Scope.Run, Incarnation: e.Incarnation}, bus.Traces)
	f.errand(id, func(ctx context.Context) error { return log.Purge(ctx, e.Key) })
	return nil
}

// Commit implements rollout.Fleet: it purges the traces of jobs, and tasks of
// theirs that were redelivered meanwhile.
func (f *Fleet) Commit(ctx context.Context, jobs []rollout.JobID) error {
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, id := range jobs {
		group.Go(func() error {
			if err := bus.CheckName(string(id)); err != nil {
				return err
			}
			if err := f.jobs.Remove(inner, string(id)); err != nil {
				return err
			}
			if err := f.traces.Purge(inner, string(id)); err != nil {
				return err
			}
			f.mu.Lock()
			delete(f.stored, id)
			f.mu.Unlock()
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("committing %d jobs: %w", len(jobs), err)
	}
	return nil
}
