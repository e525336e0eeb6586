package coordinator

import (
	"context"
	"sync"
)

// slots bounds how far sampling runs ahead of training. One is charged when a
// question is admitted to a step, and freed when the weights trained on it are
// live, or at once when its group is dropped.
type slots struct {
	mu      sync.Mutex
	free    int
	charged map[int]int // by step of the stage
	changed chan struct{}
}

func newSlots(capacity int) *slots {
	return &slots{free: capacity, charged: map[int]int{}, changed: make(chan struct{})}
}

// charge takes a slot for step, waiting until one is free.
func (s *slots) charge(ctx context.Context, step int) error {
	for {
		s.mu.Lock()
		if s.free > 0 {
			s.free--
			s.charged[step]++
			s.mu.Unlock()
			return nil
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// drop frees one slot of step.
func (s *slots) drop(step int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.charged[step]--
	s.release(1)
}

// live frees the slots of all steps up to version, whose weights now sample.
func (s *slots) live(version int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	freed := 0
	for step, n := range s.charged {
		if step <= version {
			freed += n
			delete(s.charged, step)
		}
	}
	s.release(freed)
}

// release adds n free slots and wakes those who wait. The lock is held.
func (s *slots) release(n int) {
	s.free += n
	close(s.changed)
	s.changed = make(chan struct{})
}
