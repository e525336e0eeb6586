package judge

import (
	"context"
	"sync"
)

type key = [32]byte

// cache keeps verdicts by content and lets one caller at a time compute each.
// Failures are not kept. When it is full, the oldest verdict goes.
type cache struct {
	mu      sync.Mutex
	size    int
	done    map[key]float64
	order   []key // of done, oldest first
	pending map[key]chan struct{}
}

func newCache(size int) *cache {
	return &cache{size: size, done: map[key]float64{}, pending: map[key]chan struct{}{}}
}

// get returns the verdict of k, computing it unless another caller already
// does. If that caller fails, whoever waited computes it under its own context:
// one caller's deadline never decides for another.
func (c *cache) get(ctx context.Context, k key, compute func() (float64, error)) (float64, error) {
	for {
		c.mu.Lock()
		if verdict, ok := c.done[k]; ok {
			c.mu.Unlock()
			return verdict, nil
		}
		wait, busy := c.pending[k]
		if !busy {
			c.pending[k] = make(chan struct{})
			c.mu.Unlock()
			return c.fill(k, compute)
		}
		c.mu.Unlock()
		select {
		case <-wait:
			if verdict, ok := c.lookup(k); ok {
				return verdict, nil
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (c *cache) lookup(k key) (float64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	verdict, ok := c.done[k]
	return verdict, ok
}

// fill computes k and wakes those who wait for it.
func (c *cache) fill(k key, compute func() (float64, error)) (verdict float64, err error) {
	finished := false
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if finished && err == nil && c.size > 0 {
			if len(c.order) >= c.size {
				delete(c.done, c.order[0])
				c.order = c.order[1:]
			}
			c.done[k] = verdict
			c.order = append(c.order, k)
		}
		close(c.pending[k])
		delete(c.pending, k)
	}()
	verdict, err = compute()
	finished = true
	return verdict, err
}
