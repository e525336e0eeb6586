package coordinator

import "sync"

// books counts groups: admitted = trained + dropped + in flight, always.
type books struct {
	mu sync.Mutex
	c  Counts
}

func (b *books) admit(n int) { b.add(Counts{Admitted: n, InFlight: n}) }

func (b *books) drop(n int) { b.add(Counts{Dropped: n, InFlight: -n}) }

func (b *books) train(n int) { b.add(Counts{Trained: n, InFlight: -n}) }

func (b *books) add(d Counts) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.c.Admitted += d.Admitted
	b.c.Trained += d.Trained
	b.c.Dropped += d.Dropped
	b.c.InFlight += d.InFlight
}

func (b *books) set(c Counts) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.c = c
}

// counts returns the books, or a *CountError when they do not close.
func (b *books) counts() (Counts, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.c.Closed() || b.c.InFlight < 0 {
		return b.c, &CountError{Counts: b.c}
	}
	return b.c, nil
}
