package qwenvl

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// subject is a request with the answer that it has alone.
type subject struct {
	request Request
	alone   []Choice
}

// mixedRequests are requests with and without images, of every sampling
// option, some with equal prompts.
func mixedRequests(g *goldenFile) []Request {
	text := Sampling{Temperature: 1, MaxTokens: 24, Seeded: true, Seed: 1024}
	vary := func(change func(*Sampling)) Sampling { s := text; change(&s); return s }
	pads := func(n int) []int32 {
		out := []int32{54}
		for range n {
			out = append(out, 52)
		}
		return append(out, 55)
	}
	image := func(h, w int, stream uint64) Image {
		grid := Grid{1, h, w}
		return Image{Digest: sha256.Sum256(fmt.Append(nil, "grid", h, w, stream)), Grid: grid, Patches: drawnPatches(g.model.Config, grid, stream)}
	}
	golden := goldenRequest(g)
	golden.Choices, golden.Sampling = 3, text
	again := golden
	again.Salt = "salted"
	long := Request{Choices: 1, Sampling: text}
	for i := range 511 { // leaves room for one token
		long.Prompt = append(long.Prompt, int32(i%50))
	}
	return []Request{
		golden, again, long,
		{Prompt: []int32{7}, Choices: 2, Sampling: vary(func(s *Sampling) { s.TopK = 5; s.TopP = 0.8; s.MinP = 0.05; s.TopLogProbs = 4 })},
		{Prompt: []int32{7}, Choices: 5, Sampling: vary(func(s *Sampling) { s.Seed = 9; s.MaxTokens = 70; s.IgnoreEOS = true; s.TopLogProbs = -1 })},
		{Prompt: append(pads(1), 9), Images: []Image{image(2, 2, 1)}, Sampling: Sampling{MaxTokens: 9}},
		{Prompt: append(pads(7), 3), Images: []Image{image(2, 14, 2)}, Choices: 2, Sampling: vary(func(s *Sampling) { s.RepetitionPenalty = 1.3; s.FrequencyPenalty = 0.4 })},
		{Prompt: append(pads(15), 3), Images: []Image{image(10, 6, 3)}, Choices: 2,
			Sampling: vary(func(s *Sampling) { s.StopTokens = []int32{1, 2, 3}; s.MinTokens = 6; s.Banned = []int32{52, 53} })},
		{Prompt: append(append(pads(1), 4), pads(7)...), Images: []Image{image(2, 2, 1), image(2, 14, 2)}, Choices: 1, Sampling: text},
	}
}

func subjects(t *testing.T, g *goldenFile, model *Model) []subject {
	t.Helper()
	var all []subject
	for i, request := range mixedRequests(g) {
		e := newEngine(t, model, Options{Workers: 1, MaxSequences: 1})
		all = append(all, subject{request, generate(t, e, request).Choices})
		if n := len(all[i].request.Images); n > 0 && e.Stats().ImageQueries != int64(n) {
			t.Fatalf("request %d looked up %d images of %d", i, e.Stats().ImageQueries, n)
		}
	}
	return all
}

// same reports the first choice that differs.
func (s subject) same(got []Choice) error {
	for i := range s.alone {
		if !sameChoice(got[i], s.alone[i]) {
			return fmt.Errorf("choice %d is %v (%s), alone %v (%s)", i, got[i].Tokens, got[i].Finish, s.alone[i].Tokens, s.alone[i].Finish)
		}
	}
	return nil
}

// Any composition, order, cancellation, freezing, change to equal weights, size
// of the caches, number of slots and of workers: a request that is answered has
// the bits that it has alone.
func TestNoScheduleChangesATrace(t *testing.T) {
	g := loadGolden(t)
	all := subjects(t, g, g.model)
	twin := drawnModel(t, g.model.Config, "")
	rapid.Check(t, func(r *rapid.T) {
		e, err := New(g.model, Options{Workers: rapid.IntRange(1, 4).Draw(r, "workers"), MaxSequences: rapid.IntRange(1, 12).Draw(r, "slots"),
			CacheBytes: rapid.SampledFrom([]int{1, 30_000, 200_000, 0}).Draw(r, "cache")})
		if err != nil {
			r.Fatal(err)
		}
		defer e.Close()
		var wait sync.WaitGroup
		failures := make(chan error, 100)
		ask := func(s subject, ctx context.Context) {
			result, err := e.Generate(ctx, s.request)
			if err == nil {
				err = s.same(result.Choices)
			}
			if err != nil && !errors.Is(err, context.Canceled) {
				failures <- err
			}
		}
		ctx := deadline(t)
		for range rapid.IntRange(1, 20).Draw(r, "operations") {
			switch rapid.IntRange(0, 12).Draw(r, "operation") {
			case 0:
				err = e.Pause(ctx, PauseKeep, rapid.Bool().Draw(r, "clear"))
			case 1:
				err = e.Swap(ctx, twin)
			case 2:
				err = errors.Join(e.ResetPrefixes(ctx), e.ResetImages(ctx))
			case 3, 4:
				err = e.Resume(ctx)
			case 5, 6: // a client that leaves at some time
				short, cancel := context.WithCancel(ctx)
				s := rapid.SampledFrom(all).Draw(r, "leaver")
				wait.Go(func() { ask(s, short) })
				for range rapid.IntRange(0, 3).Draw(r, "steps") { // between two steps each
					if _, err := e.Paused(ctx); err != nil {
						r.Fatal(err)
					}
				}
				cancel()
			default:
				s := rapid.SampledFrom(all).Draw(r, "subject")
				wait.Go(func() { ask(s, ctx) })
			}
			if err != nil {
				r.Fatal(err)
			}
		}
		if err := e.Resume(ctx); err != nil {
			r.Fatal(err)
		}
		wait.Wait()
		close(failures)
		for err := range failures {
			r.Error(err)
		}
		if err := e.doAndWait(ctx, func() {
			if len(e.running)+len(e.waiting)+len(e.held) != 0 || e.prefixes.used > e.options.CacheBytes || e.images.used > e.options.CacheBytes {
				r.Errorf("left: %d running, %d waiting, caches of %d and %d bytes in %d", len(e.running), len(e.waiting)+len(e.held),
					e.prefixes.used, e.images.used, e.options.CacheBytes)
			}
		}); err != nil {
			r.Fatal(err)
		}
	})
}

// Weights that change behind a pause that waits: every answer is wholly of the
// old or wholly of the new ones, and all counters close.
func TestSwapsBehindAPauseNeverMix(t *testing.T) {
	g := loadGolden(t)
	models := []*Model{g.model, drawnModel(t, g.model.Config, "next")}
	answers := [][]subject{subjects(t, g, models[0]), subjects(t, g, models[1])}
	e := newEngine(t, models[0], Options{MaxSequences: 5})
	var clients sync.WaitGroup
	choices := int64(0)
	for i := range 40 {
		old, fresh := answers[0][i%len(answers[0])], answers[1][i%len(answers[1])]
		choices += int64(len(old.alone))
		clients.Go(func() {
			result, err := e.Generate(deadline(t), old.request)
			if err != nil {
				t.Error(err)
			} else if err := old.same(result.Choices); err != nil && fresh.same(result.Choices) != nil {
				t.Errorf("an answer of neither: %v", err)
			}
		})
		if i%5 == 4 {
			ctx := deadline(t)
			if err := errors.Join(e.Pause(ctx, PauseWait, true), e.Swap(ctx, models[i/5%2]), e.Resume(ctx)); err != nil {
				t.Fatal(err)
			}
		}
	}
	clients.Wait()
	if s := e.Stats(); s.Stopped+s.Length != choices || s.Aborted != 0 || s.Swaps != 8 {
		t.Errorf("%d choices: %+v", choices, s)
	}
}

// divergedSource is a model whose weights are numbers, but too large to compute
// with.
type divergedSource struct{ Source }

func (n divergedSource) Float32(name string, shape ...int) ([]float32, error) {
	out, err := n.Source.Float32(name, shape...)
	if name == "model.norm.weight" {
		fill(out, math.MaxFloat32)
	}
	return out, err
}

// Diverged weights fail the request by name; they neither answer with rubbish
// nor end the engine.
func TestDivergedWeightsFailByName(t *testing.T) {
	g := loadGolden(t)
	broken, err := NewModel(g.model.Config, divergedSource{drawnSource{g.model.Config, ""}})
	if err != nil {
		t.Fatal(err)
	}
	e := newEngine(t, broken, Options{MaxSequences: 2})
	request := goldenRequest(g)
	request.Choices, request.Sampling.Temperature = 5, 1
	for range 3 {
		if _, err := e.Generate(deadline(t), request); !errors.Is(err, ErrNotFinite) {
			t.Fatalf("got %v", err)
		}
	}
	if err := e.Swap(deadline(t), g.model); err != nil {
		t.Fatal(err)
	}
	if s := e.Stats(); s.Running != 0 || s.Waiting != 0 || s.CacheUsage != 0 {
		t.Errorf("left behind: %+v", s)
	}
	generate(t, e, request)
}
