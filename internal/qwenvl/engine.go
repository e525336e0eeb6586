package qwenvl

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
)

// Options configure an Engine. The zero value is usable.
type Options struct {
	// MaxSequences is how many traces are decoded at the same time. 0 means 512.
	MaxSequences int
	// MaxLength bounds prompt plus response, in tokens. 0 means the config's
	// max_position_embeddings, which is also the upper limit.
	MaxLength int
	// Workers is the number of goroutines that compute. 0 means GOMAXPROCS.
	// It does not change any result.
	Workers int
	// Seed numbers the requests that bring no seed of their own.
	Seed int64
	// CacheBytes bounds each of the two caches (prompts, image features).
	// 0 means 64 MiB.
	CacheBytes int
	// EndToken is the primary end token, whose stop is reported without a stop
	// token; -1 for none. OtherEnds also end a response, and are reported. When
	// both are zero they are taken from the config: its first EOS, its others.
	EndToken  int32
	OtherEnds []int32
}

// Errors of an engine.
var (
	// ErrClosed is returned by every call after Close.
	ErrClosed = errors.New("engine is closed")
	// ErrOtherModel is returned by Swap for weights of another architecture.
	ErrOtherModel = errors.New("weights belong to another model config")
	// ErrNotFinite is returned when a token's log-probability is no number: the
	// weights are broken, or the training that made them has diverged.
	ErrNotFinite = errors.New("the model's logits are not finite")
	// errDigest is the answer to two images of different size with one digest.
	errDigest = fmt.Errorf("%w: an image has the digest of another of a different size", ErrPrompt)
)

// Engine decodes requests on one model, many at a time. All methods may be
// called from several goroutines. One goroutine owns all of its state and
// Workers-1 more help it compute; Close ends them.
type Engine struct {
	options  Options
	config   Config
	commands chan func()
	closing  chan struct{}
	once     sync.Once
	done     sync.WaitGroup
	stats    counters

	// Owned by the goroutine that runs loop.
	model    *Model
	paused   bool
	draining []chan struct{} // callers of Pause(PauseWait)
	waiting  []*call
	held     []*call // arrived while draining
	running  []*trace
	finished []*call // ended in this step, their callers not told yet
	prefixes *cache[*prefix]
	images   *cache[[]float32]
	requests uint64
	pool     []segment
	team     *team
	work     stepWork
}

// New starts an engine on a model.
func New(model *Model, options Options) (*Engine, error) {
	config := model.Config
	if options.MaxSequences == 0 {
		options.MaxSequences = 512
	}
	if options.MaxLength == 0 {
		options.MaxLength = config.MaxPositions
	}
	if options.Workers == 0 {
		options.Workers = runtime.GOMAXPROCS(0)
	}
	if options.CacheBytes == 0 {
		options.CacheBytes = 64 << 20
	}
	if options.EndToken == 0 && len(options.OtherEnds) == 0 {
		options.EndToken = -1
		for i, id := range config.EOS {
			if i == 0 {
				options.EndToken = int32(id)
			} else {
				options.OtherEnds = append(options.OtherEnds, int32(id))
			}
		}
	}
	if err := options.validate(config); err != nil {
		return nil, err
	}
	e := &Engine{options: options, config: config, commands: make(chan func()), closing: make(chan struct{}), model: model,
		prefixes: newCache[*prefix](options.CacheBytes), images: newCache[[]float32](options.CacheBytes)}
	e.team = newTeam(options.Workers, config)
	e.work.engine = e
	e.done.Go(e.loop)
	return e, nil
}

func (o *Options) validate(c Config) error {
	var problems []error
	if o.MaxSequences < 1 {
		problems = append(problems, fmt.Errorf("max sequences is %d, want at least 1", o.MaxSequences))
	}
	if o.MaxLength < 2 || o.MaxLength > c.MaxPositions {
		problems = append(problems, fmt.Errorf("max length is %d, want 2 to max_position_embeddings %d", o.MaxLength, c.MaxPositions))
	}
	if o.Workers < 1 {
		problems = append(problems, fmt.Errorf("workers is %d, want at least 1", o.Workers))
	}
	if o.CacheBytes < 0 {
		problems = append(problems, fmt.Errorf("cache bytes is %d, want 0 or more", o.CacheBytes))
	}
	for _, id := range append([]int32{o.EndToken}, o.OtherEnds...) {
		if id < -1 || int(id) >= c.VocabSize {
			problems = append(problems, fmt.Errorf("end token %d is outside the vocabulary of %d", id, c.VocabSize))
		}
	}
	if len(problems) > 0 {
		return fmt.Errorf("engine options: %w", errors.Join(problems...))
	}
	return nil
}

// MaxLength is the bound on prompt plus response, in tokens.
func (e *Engine) MaxLength() int { return e.options.MaxLength }

// call is a request on its way through the engine.
type call struct {
	request  Request
	spans    []ImageSpan
	key      [32]byte
	ends     []int32 // all tokens that end a response
	seed     uint64
	prefix   *prefix
	cached   int
	admitted int // choices that became traces
	open     int // choices not finished
	dropped  bool
	counted  bool  // in the prompt token counter
	err      error // set before done is closed
	result   Result
	done     chan struct{} // closed when result is complete
}

// Generate draws the traces of a request and returns when all have ended. When
// ctx ends first, the request leaves the engine and ctx's error is returned.
// While the engine is paused, requests wait.
func (e *Engine) Generate(ctx context.Context, request Request) (Result, error) {
	spans, err := request.check(e.config, e.options.MaxLength)
	if err != nil {
		return Result{}, err
	}
	if request.Choices == 0 {
		request.Choices = 1
	}
	c := &call{request: request, spans: spans, key: request.prefixKey(), done: make(chan struct{})}
	if err := e.do(ctx, func() { e.enqueue(c) }); err != nil {
		return Result{}, err
	}
	select {
	case <-c.done:
		return c.result, c.err
	case <-ctx.Done():
		if err := e.do(context.Background(), func() { e.cancel(c) }); err != nil {
			return Result{}, err
		}
		return Result{}, ctx.Err()
	case <-e.closing:
		return Result{}, ErrClosed
	}
}

// do runs f on the engine's goroutine, between steps.
func (e *Engine) do(ctx context.Context, f func()) error {
	select {
	case e.commands <- f:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-e.closing:
		return ErrClosed
	}
}

// doAndWait runs f on the engine's goroutine and waits for its end.
func (e *Engine) doAndWait(ctx context.Context, f func()) error {
	finished := make(chan struct{})
	if err := e.do(ctx, func() { f(); close(finished) }); err != nil {
		return err
	}
	<-finished
	return nil
}

// Swap replaces the weights between two steps, drops both caches, and lets
// running traces go on under the new weights: their keys and values are
// computed again, their tokens and log-probabilities so far stay. Either the
// swap happens whole or nothing changes.
func (e *Engine) Swap(ctx context.Context, model *Model) error {
	var result error
	err := e.doAndWait(ctx, func() {
		if !sameArchitecture(e.config, model.Config) {
			result = fmt.Errorf("%w: the sizes or tokens of config.json differ", ErrOtherModel)
			return
		}
		e.model = model
		e.stats.swaps.Add(1)
		e.dropCaches()
		for _, t := range e.running {
			t.restart()
		}
		for _, c := range e.waiting {
			c.prefix = nil
		}
	})
	return errors.Join(err, result)
}

// Close ends the engine: calls in flight return ErrClosed. It returns when all
// goroutines have ended; calling it again does nothing.
func (e *Engine) Close() {
	e.once.Do(func() { close(e.closing) })
	e.done.Wait()
}
