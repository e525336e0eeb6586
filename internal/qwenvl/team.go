package qwenvl

import (
	"sync"
	"sync/atomic"
)

// workspace is what one goroutine computes in.
type workspace struct {
	text    textScratch
	vision  visionScratch
	sampler *sampler
	batch   []*sequence
	first   []float32 // logits after a prompt
}

// team is the goroutine of the engine and its helpers. run hands out numbered
// tasks; who takes which task changes no result.
type team struct {
	spaces []*workspace
	start  []chan struct{} // one per helper
	ended  sync.WaitGroup  // helpers that have returned

	task  func(space *workspace, i int)
	tasks int
	next  atomic.Int64
	busy  sync.WaitGroup
}

func newTeam(workers int, c Config) *team {
	t := &team{}
	for i := range workers {
		t.spaces = append(t.spaces, &workspace{sampler: newSampler(c.VocabSize)})
		if i == 0 {
			continue
		}
		start := make(chan struct{}, 1)
		t.start = append(t.start, start)
		t.ended.Go(func() {
			for range start {
				t.take(t.spaces[i])
				t.busy.Done()
			}
		})
	}
	return t
}

// run calls task for 0 to n-1, spread over the team, and returns when all are
// done. It allocates nothing.
func (t *team) run(n int, task func(space *workspace, i int)) {
	t.task, t.tasks = task, n
	t.next.Store(0)
	helpers := min(len(t.start), n-1)
	for i := range max(helpers, 0) {
		t.busy.Add(1)
		t.start[i] <- struct{}{}
	}
	t.take(t.spaces[0])
	t.busy.Wait()
}

func (t *team) take(space *workspace) {
	for {
		i := int(t.next.Add(1)) - 1
		if i >= t.tasks {
			return
		}
		t.task(space, i)
	}
}

func (t *team) close() {
	for _, start := range t.start {
		close(start)
	}
	t.ended.Wait()
}
