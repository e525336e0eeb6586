package qwenvl

import (
	"reflect"
	"slices"
)

// trace is one choice of a call while it is decoded.
type trace struct {
	sequence
	call   *call
	index  int
	seed   uint64
	choice *Choice
	finish Finish // set when it ended
	newest bool   // the last step sampled a token
	broken bool   // its log-probability is no number
}

// restart forgets keys and values, which belong to old weights; the response
// is fed again token by token.
func (t *trace) restart() {
	t.prefix, t.fed = nil, 0
	t.call.prefix = nil
}

func sameArchitecture(a, b Config) bool {
	// How the weights are stored on disk is no part of the architecture.
	a.DType, b.DType = "", ""
	return reflect.DeepEqual(a, b)
}

// loop is the engine: commands between steps, steps while there is work.
func (e *Engine) loop() {
	defer e.team.close()
	for {
		if e.idle() {
			select {
			case f := <-e.commands:
				f()
			case <-e.closing:
				return
			}
		}
		for more := true; more; {
			select {
			case f := <-e.commands:
				f()
			case <-e.closing:
				return
			default:
				more = false
			}
		}
		e.dropCancelled()
		if !e.paused {
			e.admit()
			e.step()
			e.settle()
		}
		e.answer()
		e.finishDraining()
	}
}

// answer publishes what is in the engine now and then lets the callers of
// finished calls go, in that order: whoever has an answer and asks for the
// gauges next does not count its own traces.
func (e *Engine) answer() {
	e.stats.gauge(e)
	for _, c := range e.finished {
		close(c.done)
	}
	clear(e.finished)
	e.finished = e.finished[:0]
}

func (e *Engine) idle() bool {
	return e.paused || len(e.running) == 0 && len(e.waiting) == 0
}

// enqueue takes a new call in.
func (e *Engine) enqueue(c *call) {
	e.requests++
	if c.request.Sampling.Seeded {
		c.seed = uint64(c.request.Sampling.Seed)
	} else {
		c.seed = splitSeed(uint64(e.options.Seed), e.requests)
	}
	c.ends = e.endsOf(&c.request.Sampling)
	c.open = c.request.Choices
	c.result.Choices = make([]Choice, c.request.Choices)
	for i := range c.result.Choices {
		c.result.Choices[i].StopToken = NoStopToken
	}
	if len(e.draining) > 0 {
		e.held = append(e.held, c)
	} else {
		e.waiting = append(e.waiting, c)
	}
	e.stats.gauge(e)
}

// endsOf lists every token that ends a response.
func (e *Engine) endsOf(s *Sampling) []int32 {
	ends := slices.Clone(s.StopTokens)
	if !s.IgnoreEOS {
		if e.options.EndToken >= 0 {
			ends = append(ends, e.options.EndToken)
		}
		ends = append(ends, e.options.OtherEnds...)
	}
	return ends
}

// cancel marks a call whose caller has left; its choices count as aborted.
func (e *Engine) cancel(c *call) {
	if c.open > 0 && !c.dropped {
		e.stats.aborted.Add(int64(c.request.Choices))
	}
	c.dropped = true
}

// dropCancelled forgets calls whose callers have left.
func (e *Engine) dropCancelled() {
	gone := func(c *call) bool { return c.dropped }
	e.waiting = slices.DeleteFunc(e.waiting, gone)
	e.held = slices.DeleteFunc(e.held, gone)
	e.running = slices.DeleteFunc(e.running, func(t *trace) bool {
		if t.call.dropped {
			e.release(t)
		}
		return t.call.dropped
	})
}

// prefillTokens bounds how many new prompt tokens one step takes in, so that a
// burst of requests does not hold up the running traces for long.
const prefillTokens = 8192

// admit turns waiting choices into traces while there is room.
func (e *Engine) admit() {
	budget := prefillTokens
	for len(e.waiting) > 0 && len(e.running) < e.options.MaxSequences && budget > 0 {
		c := e.waiting[0]
		if c.prefix == nil {
			budget -= len(c.request.Prompt)
		}
		for c.admitted < c.request.Choices && len(e.running) < e.options.MaxSequences {
			e.running = append(e.running, e.newTrace(c, c.admitted))
			c.admitted++
		}
		if c.admitted == c.request.Choices {
			e.waiting = e.waiting[1:]
		}
	}
	if len(e.waiting) == 0 {
		e.waiting = nil // let the queue's array go
	}
}

// firstCapacity is how many tokens a trace has room for before its slices grow.
const firstCapacity = 1024

func (e *Engine) newTrace(c *call, index int) *trace {
	room := min(c.request.Sampling.MaxTokens, e.options.MaxLength-len(c.request.Prompt), firstCapacity)
	choice := &c.result.Choices[index]
	choice.Tokens = make([]int32, 0, room)
	choice.LogProbs = make([]float32, 0, room)
	choice.Entropies = make([]float32, 0, room)
	k := c.request.Sampling.TopLogProbs
	if k < 0 || k > e.config.VocabSize {
		k = e.config.VocabSize
	}
	choice.TopPerToken = k
	choice.Top = make([]TokenLogProb, 0, room*min(k, 32))
	return &trace{sequence: sequence{tokens: choice.Tokens}, call: c, index: index,
		seed: c.seed + uint64(index), choice: choice}
}

// settle hands out the tokens of a step and takes out the traces that ended.
func (e *Engine) settle() {
	kept, failed := e.running[:0], false
	for _, t := range e.running {
		if t.broken {
			t.call.err, failed = ErrNotFinite, true
			kept = append(kept, t)
			continue
		}
		if t.newest {
			t.newest = false
			t.choice.Finish = t.finish
			e.stats.generated.Add(1)
			if watch := t.call.request.Watch; watch != nil && watch(t.index, t.choice) && t.finish != FinishStop {
				t.finish = FinishStop
			}
		}
		if t.finish == "" {
			kept = append(kept, t)
			continue
		}
		e.end(t)
	}
	clear(e.running[len(kept):])
	e.running = kept
	if failed {
		e.dropFailed()
	}
}

// end records a finished trace and completes its call when it was the last.
func (e *Engine) end(t *trace) {
	t.choice.Finish = t.finish
	e.release(t)
	c := t.call
	c.open--
	if c.open == 0 {
		e.complete(c)
	}
}

func (e *Engine) complete(c *call) {
	c.result.CachedTokens = c.cached
	e.stats.finished(&c.result)
	e.finished = append(e.finished, c)
}

// release gives the blocks of a trace back.
func (e *Engine) release(t *trace) {
	e.pool = append(e.pool, t.blocks...)
	t.blocks = nil
}

// dropFailed takes out the traces of calls that could not be run.
func (e *Engine) dropFailed() {
	failed := func(c *call) bool { return c.err != nil }
	e.running = slices.DeleteFunc(e.running, func(t *trace) bool {
		if !failed(t.call) {
			return false
		}
		e.release(t)
		if !t.call.dropped {
			t.call.dropped = true
			e.finished = append(e.finished, t.call)
		}
		return true
	})
	e.waiting = slices.DeleteFunc(e.waiting, failed)
}
