package qwenvl

import (
	"crypto/sha256"
	"math"
)

// stepWork is the work of one step, kept between steps so that a step of pure
// decoding allocates nothing.
type stepWork struct {
	engine   *Engine
	images   []imageTask
	prompts  []*promptTask
	rows     int // traces per decode task
	decodeFn func(space *workspace, i int)
}

type imageTask struct {
	image    Image
	features []float32
	err      error
}

type promptTask struct {
	calls    []*call // with the same prompt
	features [][]float32
	result   *prefix
	err      error
}

// step prefills what needs it and then advances every running trace by one
// token.
func (e *Engine) step() {
	if len(e.running) == 0 {
		return
	}
	e.prefillNew()
	if len(e.running) == 0 {
		return
	}
	for _, t := range e.running {
		if t.fed < len(t.tokens) && t.needsBlock() {
			t.blocks = append(t.blocks, e.newBlock())
		}
	}
	w := &e.work
	tasks := (len(e.running) + decodeRows - 1) / decodeRows
	if workers := len(e.team.spaces); len(e.running) > leastRows {
		tasks = (tasks + workers - 1) / workers * workers
	}
	w.rows = (len(e.running) + tasks - 1) / tasks
	if w.decodeFn == nil {
		w.decodeFn = w.decode
	}
	e.team.run((len(e.running)+w.rows-1)/w.rows, w.decodeFn)
	e.stats.iterations.Add(1)
}

// leastRows is the number of traces below which waking another goroutine costs
// more than it saves.
const leastRows = 6

func (e *Engine) newBlock() segment {
	if n := len(e.pool); n > 0 {
		block := e.pool[n-1]
		e.pool = e.pool[:n-1]
		return block
	}
	c := e.config
	return newSegment(c.Layers, c.KVHeads, c.HeadDim, blockTokens)
}

// decode advances the traces of task i.
func (w *stepWork) decode(space *workspace, i int) {
	e := w.engine
	traces := e.running[i*w.rows : min((i+1)*w.rows, len(e.running))]
	space.batch = space.batch[:0]
	for _, t := range traces {
		if t.fed < len(t.tokens) {
			space.batch = append(space.batch, &t.sequence)
		}
	}
	if len(space.batch) > 0 {
		e.model.decode(&space.text, space.batch)
	}
	ldv := e.model.dims().ldv
	row := 0
	for _, t := range traces {
		var logits []float32
		if t.fed == 0 && len(t.tokens) == 0 {
			space.first = grow(space.first, ldv)
			logits = space.first
			copy(logits, t.prefix.logits)
		} else {
			logits = space.text.logits[row*ldv : (row+1)*ldv]
			row++
		}
		if t.fed == len(t.tokens) {
			e.sample(space.sampler, t, logits)
		}
	}
}

// sample draws the next token of a trace and decides whether it ends.
func (e *Engine) sample(s *sampler, t *trace, logits []float32) {
	options := &t.call.request.Sampling
	past := history{prompt: t.call.request.Prompt, response: t.tokens, ends: t.call.ends}
	d, logNorm := s.draw(logits, options, past, uniform(t.seed, uint64(len(t.tokens))))
	if math.IsNaN(float64(d.logProb)) {
		t.broken = true
		return
	}
	c := t.choice
	if c.TopPerToken > 0 {
		c.Top = s.top(c.Top, logits, c.TopPerToken, logNorm)
	}
	t.tokens = append(t.tokens, d.token)
	c.Tokens = t.tokens
	c.LogProbs = append(c.LogProbs, d.logProb)
	c.Entropies = append(c.Entropies, d.entropy)
	t.newest = true
	for _, id := range t.call.ends {
		if id == d.token {
			t.finish = FinishStop
			if options.IgnoreEOS || d.token != e.options.EndToken {
				c.StopToken = id
			}
			return
		}
	}
	if len(t.tokens) >= options.MaxTokens || len(t.call.request.Prompt)+len(t.tokens) >= e.options.MaxLength {
		t.finish = FinishLength
	}
}

// prefillNew gives every trace without a prefix one: from its call, from the
// cache, or by encoding images and prompt.
func (e *Engine) prefillNew() {
	w := &e.work
	w.prompts = w.prompts[:0]
	var tasks map[[sha256.Size]byte]*promptTask
	for _, t := range e.running {
		c := t.call
		if t.prefix != nil || c.prefix != nil {
			continue
		}
		n := int64(len(c.request.Prompt))
		if !c.counted {
			c.counted = true
			e.stats.prompt.Add(n)
			e.stats.prefixQueries.Add(n)
		}
		if found, ok := e.prefixes.get(c.key); ok {
			c.prefix, c.cached = found, len(c.request.Prompt)
			e.stats.prefixHits.Add(n)
			continue
		}
		if tasks == nil {
			tasks = map[[sha256.Size]byte]*promptTask{}
		}
		task := tasks[c.key]
		if task == nil {
			task = &promptTask{}
			tasks[c.key] = task
			w.prompts = append(w.prompts, task)
		}
		if len(task.calls) == 0 || task.calls[len(task.calls)-1] != c {
			task.calls = append(task.calls, c)
		}
	}
	if len(w.prompts) > 0 {
		e.encodeImages()
		e.prefillPrompts()
	}
	for _, t := range e.running {
		if t.prefix == nil {
			t.prefix = t.call.prefix
		}
	}
}

// encodeImages fills the features of every prompt task, each distinct image
// once.
func (e *Engine) encodeImages() {
	w := &e.work
	w.images = w.images[:0]
	at := map[[sha256.Size]byte]int{}
	for _, task := range w.prompts {
		for _, image := range task.calls[0].request.Images {
			e.stats.imageQueries.Add(1)
			if _, ok := at[image.Digest]; ok {
				e.stats.imageHits.Add(1)
				continue
			}
			features, ok := e.images.get(image.Digest)
			if ok {
				e.stats.imageHits.Add(1)
			}
			at[image.Digest] = len(w.images)
			w.images = append(w.images, imageTask{image: image, features: features})
		}
	}
	e.team.run(len(w.images), func(space *workspace, i int) {
		task := &w.images[i]
		if task.features == nil {
			task.features, task.err = e.model.encodeImage(&space.vision, task.image.Patches, task.image.Grid)
		}
	})
	for _, task := range w.prompts {
		for _, image := range task.calls[0].request.Images {
			done := &w.images[at[image.Digest]]
			if done.err == nil && len(done.features) != image.Grid.Tokens(e.config.Vision.MergeSize)*e.config.HiddenSize {
				done.err = errDigest
			}
			if done.err != nil {
				task.err = done.err
				continue
			}
			e.images.put(image.Digest, done.features, 4*len(done.features))
			task.features = append(task.features, done.features)
		}
	}
	clear(w.images)
}

func (e *Engine) prefillPrompts() {
	w := &e.work
	e.team.run(len(w.prompts), func(space *workspace, i int) {
		task := w.prompts[i]
		if task.err == nil {
			c := task.calls[0]
			task.result, task.err = e.model.prefill(&space.text, c.request.Prompt, c.spans, task.features)
		}
	})
	for _, task := range w.prompts {
		for i, c := range task.calls {
			c.prefix, c.err = task.result, task.err
			if i > 0 && task.err == nil {
				c.cached = len(c.request.Prompt)
				e.stats.prefixHits.Add(int64(len(c.request.Prompt)))
			}
		}
		if task.err == nil {
			e.prefixes.put(task.calls[0].key, task.result, 4*(len(task.result.cache.data)+len(task.result.logits)))
		}
	}
	clear(w.prompts)
	e.dropFailed()
}
