package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
)

// workerState is what the coordinator knows of a worker.
type workerState struct {
	report reportMessage
	heard  time.Time // by our own clock
}

// WorkerInfo describes a worker for people.
type WorkerInfo struct {
	ID      string
	Servers []string
	Running int           // jobs being sampled
	Silent  time.Duration // since its last report
}

// Workers lists the workers that are alive, by id.
func (f *Fleet) Workers() []WorkerInfo {
	f.mu.Lock()
	defer f.mu.Unlock()
	var infos []WorkerInfo
	for id, w := range f.workers {
		if silent := time.Since(w.heard); silent <= f.options.Silence {
			infos = append(infos, WorkerInfo{ID: id, Servers: w.report.Servers, Running: w.report.Running, Silent: silent})
		}
	}
	slices.SortFunc(infos, func(a, b WorkerInfo) int { return strings.Compare(a.ID, b.ID) })
	return infos
}

// reported takes in a worker's report.
func (f *Fleet) reported(e bus.Entry) error {
	var report reportMessage
	if err := decodeControl(SchemaReport, e.Message, &report); err != nil {
		f.options.Log.Warn("unreadable report passed over", "from", e.Key, "error", err)
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.workers[report.Worker]
	switch {
	case report.Stopping:
		delete(f.workers, report.Worker)
		f.options.Log.Info("worker left", "worker", report.Worker)
	case known == nil:
		f.workers[report.Worker] = &workerState{report: report, heard: time.Now()}
		f.options.Log.Info("worker joined", "worker", report.Worker, "servers", report.Servers)
	default:
		known.heard = time.Now()
		if known.report.Revision == report.Revision && known.report.Running == report.Running {
			return nil // nothing that anybody waits for
		}
		known.report = report
	}
	f.wake()
	return nil
}

// announce sets the value that workers watch, and returns its revision. It fails
// with ErrSuperseded when a higher incarnation has set it.
func (f *Fleet) announce(ctx context.Context, offer *rollout.Offer) (uint64, error) {
	data, err := json.Marshal(policyMessage{Version: controlVersion, Incarnation: f.options.Scope.Incarnation, Offer: offer})
	if err != nil {
		return 0, fmt.Errorf("offer: %w", err)
	}
	return f.values.Announce(ctx, keyPolicy, data)
}

// Adopt implements rollout.Fleet. It lets the jobs in flight of the policy
// offered before come to their end, offers the weights to all workers, and
// waits until every one that is alive has said how its servers fared; a worker
// that falls silent counts as failed. From the offer on, jobs of older policies
// are dropped as stale.
func (f *Fleet) Adopt(ctx context.Context, offer rollout.Offer) (rollout.Adopted, error) {
	f.adopting.Lock()
	defer f.adopting.Unlock()
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.options.AdoptTimeout)
		defer cancel()
	}
	start := time.Now()
	if err := f.refuseOlder(offer); err != nil {
		return rollout.Adopted{}, err
	}
	expected, err := f.gather(ctx)
	if err != nil {
		return rollout.Adopted{}, fmt.Errorf("policy %s: %w", offer.Policy, err)
	}
	if err := f.drain(ctx, offer.Policy); err != nil {
		return rollout.Adopted{}, fmt.Errorf("policy %s: %w", offer.Policy, err)
	}
	revision, err := f.announce(ctx, &offer)
	if err != nil {
		return rollout.Adopted{}, fmt.Errorf("offering policy %s: %w", offer.Policy, err)
	}
	if err := f.await(ctx, revision, expected); err != nil {
		return rollout.Adopted{}, fmt.Errorf("policy %s: %w", offer.Policy, err)
	}
	return f.verdict(offer.Policy, revision, expected, time.Since(start))
}

// refuseOlder refuses to go back to a policy from before the last offer.
func (f *Fleet) refuseOlder(offer rollout.Offer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.offered != nil && offer.Policy.Older(*f.offered) {
		return fmt.Errorf("offer of policy %s is older than %s, which was offered before", offer.Policy, *f.offered)
	}
	return nil
}

// gather waits for MinWorkers workers and returns the servers of those alive,
// by worker.
func (f *Fleet) gather(ctx context.Context) (map[string][]string, error) {
	for {
		f.mu.Lock()
		changed := f.changed
		f.mu.Unlock()
		workers := f.Workers()
		if len(workers) >= f.options.MinWorkers {
			expected := map[string][]string{}
			for _, w := range workers {
				expected[w.ID] = w.Servers
			}
			return expected, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, context.Cause(ctx)
			}
			return nil, fmt.Errorf("%d of %d workers are on the bus (run %s): start more, or look at their logs: %w",
				len(workers), f.options.MinWorkers, f.options.Scope.Run, ctx.Err())
		case <-f.ctx.Done():
			return nil, context.Cause(f.ctx)
		}
	}
}

// drain waits until no job of the policy offered before is in flight, and in
// the same moment makes policy the one that is offered.
func (f *Fleet) drain(ctx context.Context, policy rollout.Policy) error {
	for {
		f.mu.Lock()
		changed, left := f.changed, 0
		for _, entry := range f.flights {
			if f.offered != nil && entry.policy == *f.offered && entry.policy.Older(policy) {
				left++
			}
		}
		if left == 0 {
			f.offered = &policy
			f.mu.Unlock()
			return nil
		}
		f.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return context.Cause(ctx)
			}
			return fmt.Errorf("%d jobs of the policy before it are still in flight: %w", left, ctx.Err())
		case <-f.ctx.Done():
			return context.Cause(f.ctx)
		}
	}
}

// await waits until every expected worker has dealt with revision or died, or
// the deadline passes. Only the caller's cancellation is an error.
func (f *Fleet) await(ctx context.Context, revision uint64, expected map[string][]string) error {
	ticker := time.NewTicker(f.options.Silence / 8)
	defer ticker.Stop()
	for {
		f.mu.Lock()
		changed, pending := f.changed, false
		for id := range expected {
			w := f.workers[id]
			pending = pending || w != nil && w.report.Revision < revision && time.Since(w.heard) <= f.options.Silence
		}
		f.mu.Unlock()
		if !pending {
			return nil
		}
		select {
		case <-changed:
		case <-ticker.C: // a worker's silence is no event
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return context.Cause(ctx)
			}
			return nil
		case <-f.ctx.Done():
			return context.Cause(f.ctx)
		}
	}
}

// verdict collects how every server fared. Workers that joined meanwhile count
// with what they have reported, those that fell silent as failed: the quorum is
// of servers that will sample the policy.
func (f *Fleet) verdict(policy rollout.Policy, revision uint64, expected map[string][]string, waited time.Duration) (rollout.Adopted, error) {
	f.mu.Lock()
	adopted := rollout.Adopted{Policy: policy}
	for id, w := range f.workers {
		if w.report.Revision >= revision && time.Since(w.heard) <= f.options.Silence {
			delete(expected, id)
			adopted.Servers = append(adopted.Servers, serverResults(w.report)...)
			adopted.Seconds = max(adopted.Seconds, w.report.Adopted.Seconds)
		}
	}
	f.mu.Unlock()
	for id, servers := range expected {
		for _, server := range servers {
			adopted.Servers = append(adopted.Servers, rollout.ServerAdopted{Server: server,
				Err: fmt.Sprintf("worker %s did not report within %s", id, waited.Round(time.Millisecond))})
		}
	}
	slices.SortFunc(adopted.Servers, func(a, b rollout.ServerAdopted) int { return strings.Compare(a.Server, b.Server) })
	ok := 0
	for _, s := range adopted.Servers {
		if s.Err == "" {
			ok++
		}
	}
	need := f.options.Quorum
	if need == 0 {
		need = len(adopted.Servers)/2 + 1
	}
	if ok < need {
		return adopted, &rollout.QuorumError{Adopted: adopted, Need: need, Waited: waited}
	}
	return adopted, nil
}

// serverResults lists the servers of one worker. A worker whose own adoption
// failed takes no jobs of the policy: none of its servers counts as adopted,
// and those that did not fail themselves bear the worker's error.
func serverResults(report reportMessage) []rollout.ServerAdopted {
	results := slices.Clone(report.Adopted.Servers)
	if report.Error == "" {
		return results
	}
	for i := range results {
		if results[i].Err == "" {
			results[i].Err = fmt.Sprintf("worker %s: %s", report.Worker, report.Error)
		}
	}
	for _, server := range report.Servers {
		if !slices.ContainsFunc(results, func(s rollout.ServerAdopted) bool { return s.Server == server }) {
			results = append(results, rollout.ServerAdopted{Server: server, Err: report.Error})
		}
	}
	return results
}
