package qwenvl

import (
	"context"
	"fmt"
)

// PauseMode says what happens to the requests in flight when an engine pauses.
type PauseMode string

// The pause modes, by their names in vLLM's API.
const (
	PauseAbort PauseMode = "abort" // end them now with what they have
	PauseWait  PauseMode = "wait"  // let them finish first
	PauseKeep  PauseMode = "keep"  // freeze them; they go on after Resume
)

// Pause stops decoding and returns when no step is running. Requests that
// arrive meanwhile wait for Resume. clearCaches drops prompt and image caches;
// frozen traces keep their state, which stays valid until Swap recomputes it.
// A second Pause applies its mode to what is in flight then.
func (e *Engine) Pause(ctx context.Context, mode PauseMode, clearCaches bool) error {
	var drained chan struct{}
	err := e.doAndWait(ctx, func() {
		switch mode {
		case PauseAbort:
			e.abortAll()
			e.paused = true
		case PauseKeep:
			e.paused = true
		case PauseWait:
			if e.paused && len(e.running) == 0 {
				break // nothing in flight: what waits came after the pause
			}
			e.paused = false // frozen traces have to finish too
			drained = make(chan struct{})
			e.draining = append(e.draining, drained)
		}
		if clearCaches && drained == nil {
			e.dropCaches()
		}
	})
	if err != nil || drained == nil {
		return err
	}
	select {
	case <-drained:
	case <-ctx.Done():
		return fmt.Errorf("pause: waiting for %d running traces to finish: %w", e.Stats().Running, ctx.Err())
	case <-e.closing:
		return ErrClosed
	}
	if clearCaches {
		return e.doAndWait(ctx, e.dropCaches)
	}
	return nil
}

// finishDraining completes a PauseWait once nothing is in flight.
func (e *Engine) finishDraining() {
	if len(e.draining) == 0 || len(e.running) > 0 || len(e.waiting) > 0 {
		return
	}
	e.paused = true
	e.endDraining()
}

func (e *Engine) endDraining() {
	for _, drained := range e.draining {
		close(drained)
	}
	e.draining = nil
	e.waiting = append(e.waiting, e.held...)
	e.held = nil
}

// Resume lets an engine decode again. It ends a PauseWait that is still
// draining. Resuming a running engine does nothing.
func (e *Engine) Resume(ctx context.Context) error {
	return e.doAndWait(ctx, func() {
		e.paused = false
		e.endDraining()
	})
}

// Paused tells whether the engine is paused.
func (e *Engine) Paused(ctx context.Context) (paused bool, err error) {
	err = e.doAndWait(ctx, func() { paused = e.paused || len(e.draining) > 0 })
	return paused, err
}

// ResetPrefixes drops the cached prompts.
func (e *Engine) ResetPrefixes(ctx context.Context) error { return e.doAndWait(ctx, e.prefixes.clear) }

// ResetImages drops the cached image features.
func (e *Engine) ResetImages(ctx context.Context) error { return e.doAndWait(ctx, e.images.clear) }

func (e *Engine) dropCaches() {
	e.prefixes.clear()
	e.images.clear()
}

// abortAll ends everything in flight with FinishAbort.
func (e *Engine) abortAll() {
	for _, t := range e.running {
		t.finish = FinishAbort
	}
	e.settleAborted()
	for _, c := range append(e.waiting, e.held...) {
		for i := c.admitted; i < c.request.Choices; i++ {
			c.result.Choices[i].Finish = FinishAbort
		}
		c.open -= c.request.Choices - c.admitted
		if c.open == 0 {
			e.complete(c)
		}
	}
	e.waiting, e.held = nil, nil
	e.answer()
	e.endDraining()
}

func (e *Engine) settleAborted() {
	// A call that is still partly waiting completes in abortAll.
	for _, t := range e.running {
		t.choice.Finish = t.finish
		e.release(t)
		t.call.open--
		if t.call.open == 0 {
			e.complete(t.call)
		}
	}
	clear(e.running)
	e.running = e.running[:0]
}
