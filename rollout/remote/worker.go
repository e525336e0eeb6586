package remote

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
)

// ErrSuperseded says that a coordinator of a higher incarnation has the run.
var ErrSuperseded = bus.ErrSuperseded

// errStopped is why a worker that stops gives up a job that it had begun.
var errStopped = errors.New("worker is stopping")

// Timing of a worker.
const (
	reportEvery = 500 * time.Millisecond
	parkFor     = time.Second            // wait for a job's policy before giving the job back
	giveBack    = 200 * time.Millisecond // pause before a job that was given back is handed out again
	publishFor  = 10 * time.Minute       // wait for room on the bus: a step's length
)

// Worker serves the jobs of one run with the servers behind a fleet.
type Worker struct {
	options WorkerOptions
	jobs    *bus.Queue
	values  *bus.Values

	mu      sync.Mutex
	state   workerView
	changed chan struct{}         // closed and replaced when state changes
	inHand  map[string]bool       // keys of the tasks that are being handled
	failed  map[rollout.JobID]int // failures of the fleet, by job
}

// workerView is what the worker believes.
type workerView struct {
	incarnation uint64         // the highest that it has seen
	offer       *rollout.Offer // of that incarnation; nil until there is one
	revision    uint64         // of the value that held offer
	live        *rollout.Policy
	report      reportMessage // of the last adoption
	reign       context.Context
	end         context.CancelCauseFunc // of reign: ends with the incarnation
}

// NewWorker checks options. Nothing runs before Run.
func NewWorker(options WorkerOptions) (*Worker, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Worker{
		options: options, jobs: options.Conn.Queue(bus.Scope{Run: options.Run}), values: options.Conn.Values(options.Run),
		changed: make(chan struct{}), inHand: map[string]bool{}, failed: map[rollout.JobID]int{},
	}, nil
}

// Run serves until soft ends: then it takes no more jobs, finishes those it
// has, and returns nil. When hard ends it stops at once and its jobs go back to
// the queue. A worker that loses the bus for longer than its leases last drops
// what it has and begins again when the bus is back. It fails with bus.ErrHeld
// if another worker keeps one of its servers.
func (w *Worker) Run(soft, hard context.Context) error {
	for {
		err := w.runOnce(soft, hard)
		if !errors.Is(err, bus.ErrLost) || soft.Err() != nil || hard.Err() != nil {
			return err
		}
		w.options.Log.Warn("beginning again", "worker", w.options.ID, "error", err)
	}
}

// runOnce serves until soft ends or a lease is lost.
func (w *Worker) runOnce(soft, hard context.Context) error {
	hard, kill := context.WithCancelCause(hard)
	defer kill(nil)
	soft, stop := context.WithCancelCause(soft)
	defer stop(nil)
	defer context.AfterFunc(hard, func() { stop(context.Cause(hard)) })()
	w.update(func(s *workerView) { *s = workerView{} })

	var helpers, slots sync.WaitGroup
	background, quiet := context.WithCancel(context.WithoutCancel(hard))
	var leases []*bus.Lease
	defer func() {
		quiet()
		helpers.Wait()
		w.release(leases)
	}()
	helpers.Go(func() { w.watch(background, kill) })
	if err := w.until(soft, func(s workerView) bool { return s.incarnation > 0 }); err != nil {
		return w.ended(hard) // stopped before any coordinator came
	}
	var err error
	if leases, err = w.take(soft); err != nil {
		if soft.Err() != nil {
			return w.ended(hard)
		}
		return err
	}
	for _, lease := range leases {
		helpers.Go(func() {
			select {
			case <-lease.Lost():
				kill(fmt.Errorf("%w: a server of worker %s", bus.ErrLost, w.options.ID))
			case <-background.Done():
			}
		})
	}
	helpers.Go(func() { w.adoptOffers(background, hard) })
	helpers.Go(func() { w.reports(background) })
	for range w.options.Slots {
		slots.Go(func() { w.serve(soft, hard, kill) })
	}
	slots.Wait()
	return w.ended(hard)
}

// ended says whether the worker ended by itself.
func (w *Worker) ended(hard context.Context) error {
	if cause := context.Cause(hard); errors.Is(cause, bus.ErrLost) || errors.Is(cause, errBus) {
		return cause
	}
	return nil
}

// until waits for a state, or the end of ctx, whose cause it returns.
func (w *Worker) until(ctx context.Context, reached func(workerView) bool) error {
	for {
		s, changed := w.view()
		if reached(s) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// errBus marks a failure of the bus that ends the worker.
var errBus = errors.New("worker lost the bus")

// take acquires the controller lease of every server.
func (w *Worker) take(ctx context.Context) ([]*bus.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, w.options.LeaseWait)
	defer cancel()
	var leases []*bus.Lease
	for _, server := range w.options.Servers {
		lease, err := w.values.Acquire(ctx, bus.LeaseOptions{
			Key: "lease.server." + serverKey(server), Holder: w.options.ID, TTL: w.options.LeaseTTL, TakeOver: w.options.TakeOver,
		})
		if err != nil {
			return leases, fmt.Errorf("worker %s, server %s: %w", w.options.ID, server, err)
		}
		leases = append(leases, lease)
	}
	return leases, nil
}

// release gives the servers up, so that the next worker need not wait.
func (w *Worker) release(leases []*bus.Lease) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for _, lease := range leases {
		if err := lease.Release(ctx); err != nil {
			w.options.Log.Warn("server stays taken until its lease expires", "error", err)
		}
	}
}

// serverKey makes a name of a server's id, which may be an address.
func serverKey(server string) string {
	sum := sha256.Sum256([]byte(server))
	return hex.EncodeToString(sum[:8])
}

// watch follows who coordinates and what is offered.
func (w *Worker) watch(ctx context.Context, kill context.CancelCauseFunc) {
	err := w.values.Watch(ctx, keyPolicy, func(v bus.Value) error {
		if v.Data == nil {
			return nil
		}
		var m policyMessage
		if err := decodeControl(SchemaPolicy, bus.Message{Schema: SchemaPolicy, Data: v.Data}, &m); err != nil {
			w.options.Log.Error("unreadable policy ignored", "error", err)
			return nil
		}
		w.update(func(s *workerView) {
			if m.Incarnation < s.incarnation {
				w.options.Log.Warn("policy of an older coordinator refused", "incarnation", m.Incarnation, "mine", s.incarnation)
				return
			}
			if m.Incarnation > s.incarnation {
				if s.end != nil {
					s.end(ErrSuperseded)
				}
				s.reign, s.end = context.WithCancelCause(context.WithoutCancel(ctx))
				s.incarnation, s.live, s.report = m.Incarnation, nil, reportMessage{}
			}
			s.offer, s.revision = m.Offer, v.Revision
		})
		return nil
	})
	if ctx.Err() == nil {
		kill(fmt.Errorf("%w: %w", errBus, err))
	}
	w.update(func(s *workerView) {
		if s.end != nil {
			s.end(errStopped)
		}
	})
}

// update changes the state and wakes everyone who waits for it.
func (w *Worker) update(change func(*workerView)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.state)
	close(w.changed)
	w.changed = make(chan struct{})
}

// view returns the state and a channel that is closed at its next change.
func (w *Worker) view() (workerView, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state, w.changed
}

// adoptOffers brings every new offer live on the servers, one after the other.
func (w *Worker) adoptOffers(ctx, hard context.Context) {
	for {
		s, changed := w.view()
		if s.offer == nil || s.report.Revision == s.revision {
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			continue
		}
		report := reportMessage{Revision: s.revision}
		inner, cancel := context.WithCancelCause(s.reign)
		stop := context.AfterFunc(hard, func() { cancel(errStopped) })
		adopted, err := w.options.Fleet.Adopt(inner, *s.offer)
		stop()
		cancel(nil)
		report.Adopted = adopted
		if err != nil {
			report.Error = err.Error()
			w.options.Log.Error("policy not adopted", "policy", s.offer.Policy, "error", err)
		} else {
			w.options.Log.Info("policy adopted", "policy", s.offer.Policy, "seconds", adopted.Seconds)
		}
		w.update(func(now *workerView) {
			if now.incarnation != s.incarnation {
				return
			}
			now.report, now.live = report, nil
			if err == nil {
				policy := s.offer.Policy
				now.live = &policy
			}
		})
		if hard.Err() != nil {
			return
		}
	}
}

// reports tells the coordinator how the worker fares, until ctx ends, and then
// that it leaves.
func (w *Worker) reports(ctx context.Context) {
	ticker := time.NewTicker(reportEvery)
	defer ticker.Stop()
	told, toldOf := reportMessage{}, uint64(0)
	for {
		s, changed := w.view()
		if s.incarnation > 0 {
			attempt, cancel := context.WithTimeout(ctx, 2*reportEvery)
			w.report(attempt, s, false)
			cancel()
			told, toldOf = s.report, s.incarnation
		}
		for waiting := true; waiting; {
			select {
			case <-ticker.C:
				waiting = false
			case <-changed:
				s, changed = w.view()
				waiting = s.report.Revision == told.Revision && s.incarnation == toldOf
			case <-ctx.Done():
				last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				defer cancel()
				if s.incarnation > 0 {
					w.report(last, s, true)
				}
				return
			}
		}
	}
}

// report sends one report.
func (w *Worker) report(ctx context.Context, s workerView, stopping bool) {
	report := s.report
	report.Version, report.Worker, report.Time = controlVersion, w.options.ID, time.Now().UTC()
	report.Servers, report.Stopping = w.options.Servers, stopping
	w.mu.Lock()
	report.Running = len(w.inHand)
	w.mu.Unlock()
	message, err := encodeControl(SchemaReport, report)
	if err == nil {
		scope := bus.Scope{Run: w.options.Run, Incarnation: s.incarnation}
		err = w.options.Conn.Log(scope, bus.Events).Append(ctx, "worker."+w.options.ID, message)
	}
	if err != nil {
		w.options.Log.Warn("report not sent", "error", err)
	}
}
