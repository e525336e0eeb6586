package coordinator

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// await names something that is waited for.
type await struct {
	what  string        // such as "trainer step 12"
	limit time.Duration // the longest time
	look  string        // where to look when it does not come
}

// bounded runs f with the deadline of w. When the deadline is what ended it,
// the error is a *TimeoutError; f must obey its context.
func bounded(ctx context.Context, w await, f func(context.Context) error) error {
	late := &TimeoutError{What: w.what, Waited: w.limit, Look: w.look}
	limited, cancel := context.WithTimeoutCause(ctx, w.limit, late)
	defer cancel()
	err := f(limited)
	if err == nil {
		return nil
	}
	if ctx.Err() == nil && context.Cause(limited) == error(late) {
		return fmt.Errorf("%w (%w)", late, err)
	}
	return fmt.Errorf("%s: %w", w.what, err)
}

// crew owns goroutines: the first error ends the context of all of them.
type crew struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	once   sync.Once
	err    error
}

func newCrew(ctx context.Context) *crew {
	c := &crew{}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	return c
}

// run starts f, which must end soon after its context does.
func (c *crew) run(f func(context.Context) error) {
	c.wg.Go(func() {
		if err := f(c.ctx); err != nil {
			c.fail(err)
		}
	})
}

// fail records err if it is the first and ends the others.
func (c *crew) fail(err error) {
	c.once.Do(func() {
		c.err = err
		c.cancel(err)
	})
}

// wait returns the first error once every goroutine has ended.
func (c *crew) wait() error {
	c.wg.Wait()
	c.cancel(nil)
	return c.err
}

// tokens is a counting semaphore.
type tokens chan struct{}

func (t tokens) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t tokens) give() { <-t }
