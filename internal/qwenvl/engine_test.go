package qwenvl

import (
	"context"
	"crypto/sha256"
	"errors"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline bounds every wait of the tests; none comes near it.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func newEngine(t testing.TB, model *Model, options Options) *Engine {
	t.Helper()
	e, err := New(model, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

func goldenRequest(g *goldenFile) Request {
	request := Request{Prompt: g.Prompt, Sampling: Sampling{MaxTokens: 12, IgnoreEOS: true}}
	for i := range g.grids {
		request.Images = append(request.Images, Image{
			Digest: sha256.Sum256([]byte{byte(i)}), Grid: g.grids[i], Patches: g.patches[i]})
	}
	return request
}

func generate(t testing.TB, e *Engine, request Request) Result {
	t.Helper()
	result, err := e.Generate(deadline(t), request)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func sameChoice(a, b Choice) bool {
	return slices.Equal(a.Tokens, b.Tokens) && sameBits(a.LogProbs, b.LogProbs) &&
		sameBits(a.Entropies, b.Entropies) && a.Finish == b.Finish && a.StopToken == b.StopToken && slices.Equal(a.Top, b.Top)
}

// logSoftmax in float64, the reference for reported log-probabilities.
func logSoftmax(logits []float32) (logp []float64, entropy float64) {
	top, sum := float64(slices.Max(logits)), 0.0
	for _, v := range logits {
		sum += math.Exp(float64(v) - top)
	}
	for _, v := range logits {
		lp := float64(v) - top - math.Log(sum)
		logp = append(logp, lp)
		entropy -= math.Exp(lp) * lp
	}
	return logp, entropy
}

func TestGreedyFollowsTheForwardPass(t *testing.T) {
	g := loadGolden(t)
	choice := generate(t, newEngine(t, g.model, Options{}), goldenRequest(g)).Choices[0]
	if choice.Finish != FinishLength || len(choice.Tokens) != 12 {
		t.Fatalf("%+v", choice)
	}
	p := prefillGolden(t, g)
	logits := append([][]float32{p.logits}, feed(g.model, &sequence{prefix: p, tokens: choice.Tokens})...)
	for i, token := range choice.Tokens {
		z := logits[i][:g.model.Config.VocabSize]
		logp, entropy := logSoftmax(z)
		if int(token) != argmax(z) {
			t.Errorf("token %d is %d, the highest logit is %d", i, token, argmax(z))
		}
		if math.Abs(float64(choice.LogProbs[i])-logp[token]) > 1e-5 || math.Abs(float64(choice.Entropies[i])-entropy) > 1e-5 {
			t.Errorf("token %d: log-probability %v entropy %v, want %v %v", i, choice.LogProbs[i], choice.Entropies[i], logp[token], entropy)
		}
	}
}

// The promise of the package, end to end: a trace is the same bits alone or
// among others, whatever the number of workers, slots, and cached prefixes.
func TestTracesDoNotDependOnCompany(t *testing.T) {
	g := loadGolden(t)
	subject := goldenRequest(g)
	subject.Choices = 3
	subject.Sampling = Sampling{Temperature: 1, MaxTokens: 80, Seed: 77, Seeded: true, IgnoreEOS: true, TopLogProbs: 3}
	want := generate(t, newEngine(t, g.model, Options{Workers: 1}), subject)

	for _, options := range []Options{{Workers: 1, MaxSequences: 2}, {Workers: 2}, {Workers: 5, MaxSequences: 40}} {
		e := newEngine(t, g.model, options)
		var wait sync.WaitGroup
		for i := range 20 {
			wait.Go(func() {
				other := Request{Prompt: []int32{int32(i), 4, 5}, Choices: 1 + i%4,
					Sampling: Sampling{Temperature: 1.3, MaxTokens: 10 + 7*i, IgnoreEOS: true}}
				if i%5 == 0 {
					other = goldenRequest(g)
				}
				if _, err := e.Generate(deadline(t), other); err != nil {
					t.Error(err)
				}
			})
		}
		for range 2 { // the second time from the prefix cache
			got := generate(t, e, subject)
			for i := range want.Choices {
				if !sameChoice(got.Choices[i], want.Choices[i]) {
					t.Errorf("options %+v: choice %d differs", options, i)
				}
			}
		}
		wait.Wait()
	}
}

func TestChoiceDrawsFromSeedPlusIndex(t *testing.T) {
	g := loadGolden(t)
	e := newEngine(t, g.model, Options{})
	request := goldenRequest(g)
	request.Sampling = Sampling{Temperature: 1, MaxTokens: 20, Seed: 500, Seeded: true}
	request.Choices = 3
	all := generate(t, e, request)
	request.Choices = 1
	request.Sampling.Seed = 502
	if one := generate(t, e, request); !sameChoice(one.Choices[0], all.Choices[2]) {
		t.Error("choice 2 of seed 500 is not choice 0 of seed 502")
	}
	if slices.Equal(all.Choices[0].Tokens, all.Choices[1].Tokens) {
		t.Error("two seeds gave the same tokens")
	}
}

func TestStopTokens(t *testing.T) {
	g := loadGolden(t)
	e := newEngine(t, g.model, Options{EndToken: 51, OtherEnds: []int32{50}})
	only := func(id int32) Sampling {
		return Sampling{MaxTokens: 5, Bias: []TokenBias{{id, 1000}}}
	}
	request := goldenRequest(g)
	request.Sampling = only(51)
	if c := generate(t, e, request).Choices[0]; c.Finish != FinishStop || c.StopToken != NoStopToken || len(c.Tokens) != 1 {
		t.Errorf("primary end: %+v", c)
	}
	request.Sampling = only(50)
	if c := generate(t, e, request).Choices[0]; c.Finish != FinishStop || c.StopToken != 50 {
		t.Errorf("other end: %+v", c)
	}
	request.Sampling = only(7)
	request.Sampling.StopTokens = []int32{7}
	request.Sampling.MinTokens = 3
	if c := generate(t, e, request).Choices[0]; c.Finish != FinishStop || c.StopToken != 7 || len(c.Tokens) != 4 {
		t.Errorf("stop token after min tokens: %+v", c)
	}
	request.Sampling = only(51)
	request.Sampling.IgnoreEOS = true
	if c := generate(t, e, request).Choices[0]; c.Finish != FinishLength || len(c.Tokens) != 5 {
		t.Errorf("ignored end: %+v", c)
	}
}

func TestLengthOfTheModelEndsATrace(t *testing.T) {
	g := loadGolden(t)
	e := newEngine(t, g.model, Options{MaxLength: len(g.Prompt) + 4})
	request := goldenRequest(g)
	request.Sampling.MaxTokens = 100
	if c := generate(t, e, request).Choices[0]; c.Finish != FinishLength || len(c.Tokens) != 4 {
		t.Errorf("%+v", c)
	}
}

func TestWatchSeesEveryTokenAndStops(t *testing.T) {
	g := loadGolden(t)
	request := goldenRequest(g)
	var seen []int
	request.Watch = func(i int, c *Choice) bool {
		seen = append(seen, len(c.Tokens))
		return len(c.Tokens) == 3
	}
	c := generate(t, newEngine(t, g.model, Options{}), request).Choices[0]
	if c.Finish != FinishStop || !slices.Equal(seen, []int{1, 2, 3}) {
		t.Errorf("finish %s after calls %v", c.Finish, seen)
	}
}

func TestCachesAreUsedAndSeparatedBySalt(t *testing.T) {
	g := loadGolden(t)
	e := newEngine(t, g.model, Options{})
	request := goldenRequest(g)
	hits := func() (prefix, image int64) { s := e.Stats(); return s.PrefixHits, s.ImageHits }
	generate(t, e, request)
	if result := generate(t, e, request); result.CachedTokens != len(g.Prompt) {
		t.Errorf("cached %d tokens of %d", result.CachedTokens, len(g.Prompt))
	}
	if p, i := hits(); p != int64(len(g.Prompt)) || i != 0 {
		t.Errorf("after a repeat: %d prompt tokens, %d images hit", p, i)
	}
	request.Salt = "other"
	if result := generate(t, e, request); result.CachedTokens != 0 {
		t.Errorf("another salt hit %d tokens", result.CachedTokens)
	}
	if p, i := hits(); p != int64(len(g.Prompt)) || i != 2 {
		t.Errorf("after another salt: %d prompt tokens, %d images hit", p, i)
	}
	if err := errors.Join(e.ResetPrefixes(deadline(t)), e.ResetImages(deadline(t))); err != nil {
		t.Fatal(err)
	}
	if result := generate(t, e, request); result.CachedTokens != 0 {
		t.Error("hit after reset")
	}
	s := e.Stats()
	if s.PromptTokens != int64(4*len(g.Prompt)) || s.GenerationTokens != 48 || s.Length != 4 || s.ImageQueries != 6 {
		t.Errorf("stats %+v", s)
	}
}

func TestGenerateRejects(t *testing.T) {
	g := loadGolden(t)
	e := newEngine(t, g.model, Options{})
	for name, tc := range map[string]struct {
		change func(*Request)
		want   error
	}{
		"empty":           {func(r *Request) { r.Prompt = nil }, ErrPrompt},
		"foreign token":   {func(r *Request) { r.Prompt = []int32{61}; r.Images = nil }, ErrPrompt},
		"negative token":  {func(r *Request) { r.Prompt = []int32{-1}; r.Images = nil }, ErrPrompt},
		"missing image":   {func(r *Request) { r.Images = r.Images[:1] }, ErrPrompt},
		"short patches":   {func(r *Request) { r.Images[0].Patches = r.Images[0].Patches[1:] }, ErrPrompt},
		"too long":        {func(r *Request) { r.Prompt = make([]int32, 512); r.Images = nil }, ErrPrompt},
		"no max tokens":   {func(r *Request) { r.Sampling.MaxTokens = 0 }, ErrSampling},
		"temperature":     {func(r *Request) { r.Sampling.Temperature = math.NaN() }, ErrSampling},
		"top p":           {func(r *Request) { r.Sampling.TopP = 1.5 }, ErrSampling},
		"ban":             {func(r *Request) { r.Sampling.Banned = []int32{99} }, ErrSampling},
		"bias":            {func(r *Request) { r.Sampling.Bias = []TokenBias{{-1, 1}} }, ErrSampling},
		"choices":         {func(r *Request) { r.Choices = -1 }, ErrSampling},
		"min over max":    {func(r *Request) { r.Sampling.MinTokens = 99 }, ErrSampling},
		"top logprobs -2": {func(r *Request) { r.Sampling.TopLogProbs = -2 }, ErrSampling},
	} {
		t.Run(name, func(t *testing.T) {
			request := goldenRequest(g)
			tc.change(&request)
			if _, err := e.Generate(deadline(t), request); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
	if _, err := New(g.model, Options{MaxLength: 1 << 20, Workers: -1, EndToken: 99}); err == nil {
		t.Error("bad options accepted")
	}
}

func TestOneDigestForTwoImagesFails(t *testing.T) {
	g := loadGolden(t)
	e := newEngine(t, g.model, Options{})
	request := goldenRequest(g)
	request.Choices = 2
	request.Images[1].Digest = request.Images[0].Digest
	if _, err := e.Generate(deadline(t), request); !errors.Is(err, ErrPrompt) {
		t.Errorf("got %v", err)
	}
	generate(t, e, goldenRequest(g)) // the engine lives
}

// A step of pure decoding allocates nothing.
func TestDecodeStepDoesNotAllocate(t *testing.T) {
	g := loadGolden(t)
	e := newEngine(t, g.model, Options{Workers: 2})
	var allocs float64
	err := e.doAndWait(deadline(t), func() {
		for i := range 20 {
			request := goldenRequest(g)
			request.Choices, request.Sampling = 5, Sampling{Temperature: 1, MaxTokens: 400, IgnoreEOS: true, Seed: int64(i), Seeded: true}
			request.Salt = string(rune('a' + i%4))
			spans, err := request.check(e.config, e.options.MaxLength)
			if err != nil {
				t.Error(err)
			}
			e.enqueue(&call{request: request, spans: spans, key: request.prefixKey(), done: make(chan struct{})})
		}
		e.admit()
		for range 2 {
			e.step()
			e.settle()
		}
		for _, space := range e.team.spaces { // every workspace has its size
			e.work.decode(space, 0)
		}
		e.settle()
		allocs = testing.AllocsPerRun(20, func() { e.step(); e.settle() })
	})
	if err != nil {
		t.Fatal(err)
	}
	if allocs != 0 {
		t.Errorf("%v allocations per step of 100 traces", allocs)
	}
}
