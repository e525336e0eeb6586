package qwenvl

import "sync/atomic"

// Stats are an engine's counters since its start and its gauges now. Token
// counts of caches follow vLLM: queries and hits count prompt tokens, and for
// images merged images.
type Stats struct {
	Running, Waiting               int // traces being decoded; choices not admitted
	PromptTokens, GenerationTokens int64
	PrefixQueries, PrefixHits      int64   // prompt tokens looked up, found
	ImageQueries, ImageHits        int64   // images looked up, found
	Iterations                     int64   // steps of the decode loop
	Swaps                          int64   // weights loaded after the first
	Stopped, Length, Aborted       int64   // finished choices by reason
	CacheUsage                     float64 // share of the response cache in use, 0 to 1
}

type counters struct {
	running, waiting, blocks                     atomic.Int64
	prompt, generated, prefixQueries, prefixHits atomic.Int64
	imageQueries, imageHits, iterations, swaps   atomic.Int64
	stopped, length, aborted                     atomic.Int64
}

// Stats may be called at any time.
func (e *Engine) Stats() Stats {
	c := &e.stats
	perTrace := (e.options.MaxLength + blockTokens - 1) / blockTokens
	return Stats{
		Running: int(c.running.Load()), Waiting: int(c.waiting.Load()),
		PromptTokens: c.prompt.Load(), GenerationTokens: c.generated.Load(),
		PrefixQueries: c.prefixQueries.Load(), PrefixHits: c.prefixHits.Load(),
		ImageQueries: c.imageQueries.Load(), ImageHits: c.imageHits.Load(),
		Iterations: c.iterations.Load(), Swaps: c.swaps.Load(),
		Stopped: c.stopped.Load(), Length: c.length.Load(), Aborted: c.aborted.Load(),
		CacheUsage: float64(c.blocks.Load()) / float64(e.options.MaxSequences*perTrace),
	}
}

// gauge publishes what is in the engine now.
func (c *counters) gauge(e *Engine) {
	waiting, blocks := 0, 0
	for _, list := range [2][]*call{e.waiting, e.held} {
		for _, call := range list {
			waiting += call.request.Choices - call.admitted
		}
	}
	for _, t := range e.running {
		blocks += len(t.blocks)
	}
	c.running.Store(int64(len(e.running)))
	c.waiting.Store(int64(waiting))
	c.blocks.Store(int64(blocks))
}

func (c *counters) finished(r *Result) {
	for i := range r.Choices {
		switch r.Choices[i].Finish {
		case FinishStop:
			c.stopped.Add(1)
		case FinishLength:
			c.length.Add(1)
		case FinishAbort:
			c.aborted.Add(1)
		}
	}
}
