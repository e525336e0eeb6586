package graph

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a backend on a small model with two images.
type bench struct {
	dir    string
	config qwenvl.Config
	images []rollout.Image
	*Trainer
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{dir: dir, config: writeModel(t, filepath.Join(dir, "model"), small(), 3)}
	b.images = []rollout.Image{writeImage(t, filepath.Join(dir, "images"), 16, 24, 90), writeImage(t, filepath.Join(dir, "images"), 8, 16, 200)}
	b.Trainer = b.open(t)
	return b
}

// open makes another backend on the same folder, as a restarted process would.
func (b *bench) open(t *testing.T) *Trainer {
	t.Helper()
	made, err := New(Options{WorkDir: filepath.Join(b.dir, "work"), Images: folder(filepath.Join(b.dir, "images")), ChunkRows: 48})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := made.Close(); err != nil {
			t.Error(err)
		}
	})
	return made
}

func (b *bench) stage() trainer.Stage {
	return trainer.Stage{Incarnation: 1, Name: "rl", Kind: trainer.RL, Model: filepath.Join(b.dir, "model"), Optimizer: trainer.Optimizer{WeightDecay: 0.01}}
}

// batch draws the batch of a step, the same each time.
func (b *bench) batch(step int) trainer.Batch {
	r := rand.New(rand.NewPCG(uint64(step), 9))
	words := func(n int) []int32 {
		out := make([]int32, n)
		for i := range out {
			out[i] = 2 + r.Int32N(30)
		}
		return out
	}
	out := trainer.Batch{Step: step}
	for q := range 5 {
		g := trainer.Group{ID: string(rune('a' + q)), Prompt: words(4 + q)}
		if q < 4 {
			image := b.images[q%2]
			g.Images = []rollout.Image{image}
			g.Prompt = imagePrompt(b.config, []int{6, 2}[q%2], words(1+q), words(3))
		}
		for range 3 {
			tokens := words(1 + r.IntN(9))
			g.Traces = append(g.Traces, trainer.Sequence{Tokens: tokens})
		}
		out.Groups = append(out.Groups, g)
	}
	return out
}

// advantages draws those of a step.
func (b *bench) advantages(batch trainer.Batch) trainer.Advantages {
	r := rand.New(rand.NewPCG(uint64(batch.Step), 10))
	a := trainer.Advantages{Options: trainer.StepOptions{Loss: trainer.PPO, ClipLow: 0.2, ClipHigh: 0.2, Aggregation: trainer.TokenMean,
		Temperature: 1, LearningRate: 1e-3, GradClip: 1, Denominators: trainer.CountDenominators(batch.Groups, 10, nil)}}
	for _, g := range batch.Groups {
		var rows [][]float32
		for range g.Traces {
			rows = append(rows, []float32{float32(r.NormFloat64())})
		}
		a.Values = append(a.Values, rows)
	}
	return a
}

// train loads, scores and applies steps from to to.
func (b *bench) train(t *testing.T, backend *Trainer, from, to int) (reports []trainer.Report) {
	t.Helper()
	ctx := context.Background()
	for step := from; step <= to; step++ {
		batch := b.batch(step)
		if err := backend.Load(ctx, batch); err != nil {
			t.Fatal(err)
		}
		if _, err := backend.Score(ctx, step, trainer.ScoreOptions{Temperature: 1}); err != nil {
			t.Fatal(err)
		}
		report, err := backend.Step(ctx, step, b.advantages(batch))
		if err != nil {
			t.Fatal(err)
		}
		report.Seconds, report.PeakBytes = 0, 0
		reports = append(reports, report)
	}
	return reports
}

func (b *bench) begin(t *testing.T, backend *Trainer, change func(*trainer.Stage)) {
	t.Helper()
	s := b.stage()
	if change != nil {
		change(&s)
	}
	if err := backend.Begin(context.Background(), s); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) publish(t *testing.T, backend *Trainer, version int) rollout.Offer {
	t.Helper()
	offer, err := backend.Publish(context.Background(), rollout.Policy{Incarnation: 1, Version: version})
	if err != nil {
		t.Fatal(err)
	}
	return offer
}

// TestTrainingRaisesTheLikelihood trains nll on one batch until it is learnt.
func TestTrainingRaisesTheLikelihood(t *testing.T) {
	b := newBench(t)
	b.begin(t, b.Trainer, nil)
	batch := b.batch(1)
	var first, last float64
	for step := 1; step <= 60; step++ {
		batch.Step = step
		if err := b.Load(context.Background(), batch); err != nil {
			t.Fatal(err)
		}
		a := b.advantages(batch)
		a.Options.Loss, a.Options.LearningRate = trainer.NLL, 2e-2
		report, err := b.Step(context.Background(), step, a)
		if err != nil {
			t.Fatal(err)
		}
		if step == 1 {
			first = report.Loss
		}
		last = report.Loss
	}
	if !(last < 0.3*first) {
		t.Errorf("loss went from %v to %v", first, last)
	}
}

// TestDigestDoesNotDependOnTheMachine trains twice, with one processor and with
// several.
func TestDigestDoesNotDependOnTheMachine(t *testing.T) {
	b := newBench(t)
	b.begin(t, b.Trainer, nil)
	want := b.train(t, b.Trainer, 1, 4)
	digest := b.publish(t, b.Trainer, 4).Policy.Digest
	was := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(was)
	other := b.open(t)
	b.begin(t, other, nil)
	if got := b.train(t, other, 1, 4); !slices.Equal(got, want) {
		t.Errorf("reports differ:\n%+v\n%+v", got, want)
	}
	if got := b.publish(t, other, 4).Policy.Digest; got != digest {
		t.Errorf("digest %s, want %s", got, digest)
	}
}

// TestResumeIsBitEqual compares an unbroken run with one that was saved and
// resumed by another process.
func TestResumeIsBitEqual(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.begin(t, b.Trainer, nil)
	b.train(t, b.Trainer, 1, 3)
	dir := filepath.Join(b.dir, "checkpoint")
	pending, err := b.Save(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	want := b.train(t, b.Trainer, 4, 6) // goes on while the checkpoint is written
	saved, err := pending.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if saved.Step != 3 || saved.Policy != "policy" || saved.Digest != digestOf(t, filepath.Join(dir, saved.Policy)) {
		t.Errorf("saved %+v", saved)
	}
	digest := b.publish(t, b.Trainer, 6).Policy.Digest

	other := b.open(t)
	b.begin(t, other, func(s *trainer.Stage) { s.Resume, s.Step, s.Model, s.Incarnation = dir, 3, "", 2 })
	if got := b.train(t, other, 4, 6); !slices.Equal(got, want) {
		t.Errorf("reports differ:\n%+v\n%+v", got, want)
	}
	offer, err := other.Publish(ctx, rollout.Policy{Incarnation: 2, Version: 6})
	if err != nil {
		t.Fatal(err)
	}
	if offer.Policy.Digest != digest {
		t.Errorf("digest %s after resuming, %s unbroken", offer.Policy.Digest, digest)
	}
	stage := b.stage()
	stage.Resume, stage.Step, stage.Incarnation = dir, 4, 2
	if err := other.Begin(ctx, stage); err == nil || !strings.Contains(err.Error(), "stands at step 3, want 4") {
		t.Errorf("resume at the wrong step: %v", err)
	}
}

// TestPublishKeepsTwo checks path, digest and clean-up of published policies.
func TestPublishKeepsTwo(t *testing.T) {
	b := newBench(t)
	b.begin(t, b.Trainer, nil)
	var offers []rollout.Offer
	for version := range 4 {
		if version > 0 {
			b.train(t, b.Trainer, version, version)
		}
		offer := b.publish(t, b.Trainer, version)
		if offer.Transport != rollout.ByDirectory || !filepath.IsAbs(offer.Path) || offer.Policy.Version != version {
			t.Errorf("offer %+v", offer)
		}
		if got := digestOf(t, offer.Path); got != offer.Policy.Digest {
			t.Errorf("version %d: directory has digest %s, offer says %s", version, got, offer.Policy.Digest)
		}
		offers = append(offers, offer)
	}
	if offers[0].Policy.Digest == offers[1].Policy.Digest {
		t.Error("a step did not change the weights")
	}
	restarted := b.open(t)
	b.begin(t, restarted, nil)
	offers = append(offers, b.publish(t, restarted, 9))
	for i, offer := range offers {
		_, err := os.Stat(offer.Path)
		if kept := err == nil; kept != (i >= len(offers)-2) {
			t.Errorf("offer %d of %d: there is %v", i, len(offers), kept)
		}
	}
	config, err := os.ReadFile(filepath.Join(offers[4].Path, "config.json"))
	if err != nil || !strings.Contains(string(config), `"torch_dtype": "float32"`) {
		t.Errorf("config.json of a published policy: %v\n%s", err, config)
	}
}

// TestFrozenPartsStay checks that frozen tensors keep their bits and the others
// do not.
func TestFrozenPartsStay(t *testing.T) {
	for _, frozen := range []trainer.ModelPart{trainer.Vision, trainer.Projector, trainer.Language} {
		b := newBench(t)
		b.begin(t, b.Trainer, func(s *trainer.Stage) { s.Frozen = []trainer.ModelPart{frozen} })
		before := slices.Clone(b.Trainer.stage.values)
		b.train(t, b.Trainer, 1, 2)
		for i, block := range b.Trainer.stage.weights.blocks {
			same := slices.Equal(b.Trainer.stage.weights.of(before, block), b.Trainer.stage.weights.of(b.Trainer.stage.values, block))
			if same == b.Trainer.stage.train[i] {
				t.Errorf("%s frozen: %s unchanged %v", frozen, block.name, same)
			}
		}
	}
}

// live is the heap that is in use, in bytes.
func live() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// TestMemoryStaysFlat compares the live heap after ten and after fifty steps,
// and after many stages.
func TestMemoryStaysFlat(t *testing.T) {
	b := newBench(t)
	b.begin(t, b.Trainer, nil)
	b.train(t, b.Trainer, 1, 10)
	early := live()
	b.train(t, b.Trainer, 11, 50)
	if late := live(); late > 1.1*early {
		t.Errorf("live heap went from %.0f to %.0f bytes over steps", early, late)
	}
	for range 8 {
		b.begin(t, b.Trainer, nil)
		b.train(t, b.Trainer, 1, 10)
	}
	if late := live(); late > 1.1*early {
		t.Errorf("live heap went from %.0f to %.0f bytes over stages", early, late)
	}
}

// TestCancelledStepIsNotDone checks that an interrupted step leaves the trainer
// as it was, and can be repeated.
func TestCancelledStepIsNotDone(t *testing.T) {
	b := newBench(t)
	b.begin(t, b.Trainer, nil)
	batch := b.batch(1)
	if err := b.Load(context.Background(), batch); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.Step(cancelled, 1, b.advantages(batch)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled step: %v", err)
	}
	got, err := b.Step(context.Background(), 1, b.advantages(batch))
	if err != nil {
		t.Fatal(err)
	}
	other := b.open(t)
	b.begin(t, other, nil)
	if want := b.train(t, other, 1, 1)[0]; got.Loss != want.Loss || got.GradNorm != want.GradNorm {
		t.Errorf("loss %v and norm %v after a cancelled try, %v and %v without", got.Loss, got.GradNorm, want.Loss, want.GradNorm)
	}
}

// FuzzOptimizerState feeds damaged optimizer files to a resume.
func FuzzOptimizerState(f *testing.F) {
	dir := f.TempDir()
	config := writeModel(f, filepath.Join(dir, "model"), small(), 3)
	l := arrange(config)
	s := &stage{weights: l, optimizer: newAdamW(trainer.Optimizer{}, l, all(len(l.blocks))), step: 4}
	good, err := safetensors.Encode(s.snapshot())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte(strings.Replace(string(good), `"step":"4"`, `"step":"x"`, 1)))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, optimizerName), data, 0o644); err != nil {
			t.Fatal(err)
		}
		state, err := readOptimizer(dir)
		if err != nil {
			return
		}
		if state.step < 0 || state.updates < 0 {
			t.Errorf("step %d, updates %d", state.step, state.updates)
		}
		to := newAdamW(trainer.Optimizer{}, l, all(len(l.blocks)))
		if err := state.restore(to); err == nil && to.updates != state.updates {
			t.Errorf("restored %d updates of %d", to.updates, state.updates)
		}
	})
}
