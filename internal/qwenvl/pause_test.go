package qwenvl

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
)

// long is a request that goes on until token last, for ever at first. It reports
// its fifth token by closing started and from then on waits for a permit from
// gate before every token.
func long(g *goldenFile) (request Request, started, gate chan struct{}, last *atomic.Int64) {
	request = goldenRequest(g)
	request.Sampling = Sampling{Temperature: 1, MaxTokens: 1 << 19, IgnoreEOS: true, Seed: 9, Seeded: true}
	started, gate, last = make(chan struct{}), make(chan struct{}), &atomic.Int64{}
	last.Store(1 << 19)
	request.Watch = func(_ int, c *Choice) bool {
		if len(c.Tokens) == 5 {
			close(started)
		}
		if len(c.Tokens) >= 5 {
			<-gate
		}
		return len(c.Tokens) >= int(last.Load())
	}
	return request, started, gate, last
}

// whileRunning runs f, handing out permits until it returns.
func whileRunning(t *testing.T, gate chan struct{}, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	for {
		select {
		case gate <- struct{}{}:
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}

// endless lets a model take prompts and responses of any length.
func endless(g *goldenFile) *goldenFile {
	copied := *g
	model := *g.model
	model.Config.MaxPositions = 1 << 20
	copied.model = &model
	return &copied
}

type answer struct {
	result Result
	err    error
}

func background(t *testing.T, e *Engine, request Request) chan answer {
	ctx := deadline(t)
	out := make(chan answer, 1)
	go func() {
		result, err := e.Generate(ctx, request)
		out <- answer{result, err}
	}()
	return out
}

func TestPauseAbortEndsEverything(t *testing.T) {
	g := endless(loadGolden(t))
	e := newEngine(t, g.model, Options{MaxSequences: 1})
	first, started, gate, _ := long(g)
	first.Choices = 2 // the second choice waits for the only slot
	answers := background(t, e, first)
	<-started
	whileRunning(t, gate, func() error { return e.Pause(deadline(t), PauseAbort, true) })
	got := <-answers
	if got.err != nil || got.result.Choices[0].Finish != FinishAbort || len(got.result.Choices[0].Tokens) < 5 ||
		got.result.Choices[1].Finish != FinishAbort {
		t.Errorf("aborted: %+v %v", got.result, got.err)
	}
	if paused, err := e.Paused(deadline(t)); !paused || err != nil {
		t.Errorf("paused %v %v", paused, err)
	}
	held := background(t, e, goldenRequest(g))
	if err := e.Resume(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if got := <-held; got.err != nil || got.result.Choices[0].Finish != FinishLength {
		t.Errorf("held request: %+v", got)
	}
}

func TestPauseWaitLetsThemFinish(t *testing.T) {
	g := endless(loadGolden(t))
	e := newEngine(t, g.model, Options{})
	request, started, gate, last := long(g)
	answers := background(t, e, request)
	<-started
	last.Store(300)
	whileRunning(t, gate, func() error { return e.Pause(deadline(t), PauseWait, true) })
	if s := e.Stats(); s.GenerationTokens != 300 || s.Running != 0 {
		t.Errorf("pause returned before the request had finished: %+v", s)
	}
	got := <-answers
	if got.err != nil || got.result.Choices[0].Finish != FinishStop || len(got.result.Choices[0].Tokens) != 300 {
		t.Errorf("%+v", got)
	}
	if paused, err := e.Paused(deadline(t)); !paused || err != nil {
		t.Errorf("paused %v %v", paused, err)
	}
	if err := e.Resume(deadline(t)); err != nil {
		t.Fatal(err)
	}
}

func TestPauseKeepFreezesAndGoesOn(t *testing.T) {
	g := endless(loadGolden(t))
	request, started, gate, last := long(g)
	e := newEngine(t, g.model, Options{})
	answers := background(t, e, request)
	<-started
	whileRunning(t, gate, func() error { return e.Pause(deadline(t), PauseKeep, true) })
	before := e.Stats()
	if before.Running != 1 {
		t.Fatalf("frozen engine: %+v", before)
	}
	last.Store(before.GenerationTokens + 100)
	close(gate)
	if err := e.Resume(deadline(t)); err != nil {
		t.Fatal(err)
	}
	got := <-answers
	if got.err != nil {
		t.Fatal(got.err)
	}
	plain := request
	plain.Watch = nil
	plain.Sampling.MaxTokens = len(got.result.Choices[0].Tokens)
	want := generate(t, newEngine(t, g.model, Options{}), plain).Choices[0]
	want.Finish = FinishStop
	if !sameChoice(got.result.Choices[0], want) {
		t.Error("a paused trace differs from an unpaused one")
	}
}

// After keep, swap, resume: tokens so far stay, later ones are those of the new
// weights given these tokens.
func TestSwapRecomputesRunningTraces(t *testing.T) {
	g := endless(loadGolden(t))
	next := drawnModel(t, g.model.Config, "next")
	e := newEngine(t, g.model, Options{})
	request, started, gate, last := long(g)
	answers := background(t, e, request)
	<-started
	whileRunning(t, gate, func() error { return e.Pause(deadline(t), PauseKeep, false) })
	frozen := int(e.Stats().GenerationTokens)
	last.Store(int64(frozen) + 100)
	close(gate)
	if err := e.Swap(deadline(t), next); err != nil {
		t.Fatal(err)
	}
	if err := e.Resume(deadline(t)); err != nil {
		t.Fatal(err)
	}
	got := <-answers
	if got.err != nil {
		t.Fatal(got.err)
	}
	c := got.result.Choices[0]
	old, fresh := *g, *g
	fresh.model = next
	compare := func(g *goldenFile, from, to int) {
		p := prefillGolden(t, g)
		logits := append([][]float32{p.logits}, feed(g.model, &sequence{prefix: p, tokens: c.Tokens})...)
		for i := from; i < to; i++ {
			logp, _ := logSoftmax(logits[i][:g.model.Config.VocabSize])
			if d := logp[c.Tokens[i]] - float64(c.LogProbs[i]); d > 1e-5 || d < -1e-5 {
				t.Errorf("token %d (swap after %d) is off by %v", i, frozen, d)
			}
		}
	}
	compare(&old, 0, frozen)
	compare(&fresh, frozen, len(c.Tokens))
	after := generate(t, e, goldenRequest(g)).Choices[0]
	if want := generate(t, newEngine(t, next, Options{}), goldenRequest(g)).Choices[0]; !sameChoice(after, want) {
		t.Error("a new request did not get the new weights")
	}
}

func TestSwapRefusesAnotherArchitecture(t *testing.T) {
	g := endless(loadGolden(t))
	e := newEngine(t, g.model, Options{})
	want := generate(t, e, goldenRequest(g)).Choices[0]
	other := g.model.Config
	other.VocabSize++
	if err := e.Swap(deadline(t), drawnModel(t, other, "")); !errors.Is(err, ErrOtherModel) {
		t.Errorf("got %v", err)
	}
	if got := generate(t, e, goldenRequest(g)).Choices[0]; !sameChoice(got, want) {
		t.Error("a refused swap changed the weights")
	}
}

func TestCancelledRequestLeaves(t *testing.T) {
	g := endless(loadGolden(t))
	e := newEngine(t, g.model, Options{})
	request, started, gate, _ := long(g)
	ctx, cancel := context.WithCancel(deadline(t))
	out := make(chan error, 1)
	go func() {
		_, err := e.Generate(ctx, request)
		out <- err
	}()
	<-started
	cancel()
	whileRunning(t, gate, func() error {
		if err := <-out; !errors.Is(err, context.Canceled) {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	close(gate)
	generate(t, e, goldenRequest(g)) // one more step has run
	if s := e.Stats(); s.Running != 0 || s.CacheUsage != 0 {
		t.Errorf("still there: %+v", s)
	}
}

func TestPausedEngineForgetsCancelledRequests(t *testing.T) {
	g := endless(loadGolden(t))
	e := newEngine(t, g.model, Options{})
	if err := e.Pause(deadline(t), PauseAbort, true); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(deadline(t))
	cancel()
	if _, err := e.Generate(ctx, goldenRequest(g)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := e.Resume(deadline(t)); err != nil {
		t.Fatal(err)
	}
}

func TestCloseEndsCalls(t *testing.T) {
	g := endless(loadGolden(t))
	e := newEngine(t, g.model, Options{})
	request, started, gate, _ := long(g)
	answers := background(t, e, request)
	<-started
	whileRunning(t, gate, func() error { e.Close(); e.Close(); return nil })
	if got := <-answers; !errors.Is(got.err, ErrClosed) {
		t.Errorf("got %+v", got)
	}
	if _, err := e.Generate(deadline(t), goldenRequest(g)); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}
