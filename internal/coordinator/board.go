package coordinator

import (
	"context"
	"sync"

	"github.com/uadt-train/uadt-train/rollout"
)

// board is what the sampler, the learner and the checkpointer of one RL stage
// know of each other. All fields are guarded by mu and change only in update.
type board struct {
	mu      sync.Mutex
	changed chan struct{}

	offers      map[int]rollout.Offer // published versions
	entered     int                   // the sampler is at this version, all before it are over
	ends        map[int]batchEnd      // batches that are durable, by step
	durable     int                   // batches up to this step are durable
	evaluated   int                   // evaluations due up to this version are recorded
	samplerDone bool                  // nothing more will be sampled or adopted
	sampling    int                   // batch being sampled, or last sampled
	training    int                   // step being trained, or last trained
	from        int                   // step that the stage began at or was resumed at
	stopping    bool
	trainTo     int // last step to train; N unless stopping
	sampleTo    int // last batch to sample; N unless stopping
}

// batchEnd is where the stage stood once a batch was durable.
type batchEnd struct {
	cursor            []byte
	refills           int             // of the stage so far
	admitted, dropped int             // of the run so far, refusals by the trainer left out
	groups            []rollout.JobID // of this batch, to be trained
}

func newBoard(from, steps int) *board {
	return &board{
		changed: make(chan struct{}), from: from, offers: map[int]rollout.Offer{}, ends: map[int]batchEnd{},
		entered: from - 1, durable: from, evaluated: from - 1, sampling: from, training: from,
		trainTo: steps, sampleTo: steps,
	}
}

// update changes the board and wakes those who wait on it.
func (b *board) update(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
	close(b.changed)
	b.changed = make(chan struct{})
}

// wait returns when ready, called under the lock, says so. What is waited for
// is always the work of another goroutine of the stage, each wait of which has
// a deadline and whose failure ends ctx: so this one needs none of its own.
func (b *board) wait(ctx context.Context, ready func() bool) error {
	for {
		b.mu.Lock()
		ok, changed := ready(), b.changed
		b.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// stop asks for an end that is resumable soon: at the last step m such that
// nothing already sampled is thrown away. Batches up to m + staleness must
// still become durable, for they belong to policies older than m.
func (b *board) stop(staleness, steps int) {
	b.update(func() {
		if b.stopping {
			return
		}
		b.stopping = true
		b.trainTo = min(max(b.training, b.sampling-staleness), steps)
		b.sampleTo = min(b.trainTo+staleness, steps)
		if b.trainTo == b.from { // nothing will be checkpointed: only finish the batch in hand
			b.sampleTo = b.sampling
		}
	})
}

// over says whether a stop leaves the sampler nothing to do: every batch that
// the last checkpoint builds upon is durable, and every evaluation before it
// recorded. A stop that trains to the end of the stage changes nothing. Called
// under the lock.
func (b *board) over(steps int) bool {
	return b.stopping && b.trainTo < steps && b.durable >= b.sampleTo && b.evaluated >= b.trainTo-1
}

// beginSampling says whether batch n is still to be sampled.
func (b *board) beginSampling(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.sampleTo {
		return false
	}
	b.sampling = max(b.sampling, n)
	return true
}

// beginTraining says whether step n is still to be trained.
func (b *board) beginTraining(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.trainTo {
		return false
	}
	b.training = n
	return true
}

// offer returns the offer of a published version.
func (b *board) offer(version int) rollout.Offer {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.offers[version]
}

// forget drops what only checkpoints up to step m need, so that memory does not
// grow with the steps.
func (b *board) forget(m int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n := range b.ends {
		if n <= m {
			delete(b.ends, n)
		}
	}
}

// end returns where the stage stood after batch n.
func (b *board) end(n int) batchEnd {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ends[n]
}
