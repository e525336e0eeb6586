package graph

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// TestRefusals lists what the backend does not take, and the errors that
// callers decide by.
func TestRefusals(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	if err := b.Load(ctx, b.batch(1)); !errors.Is(err, ErrNotBegun) {
		t.Errorf("load before begin: %v", err)
	}
	for what, spoil := range map[string]func(s *trainer.Stage){
		"every part is frozen": func(s *trainer.Stage) {
			s.Frozen = []trainer.ModelPart{trainer.Vision, trainer.Projector, trainer.Language}
		},
		`frozen part "tail"`: func(s *trainer.Stage) { s.Frozen = []trainer.ModelPart{"tail"} },
		"neither a model":    func(s *trainer.Stage) { s.Model = "" },
		"beta1 is 1.5":       func(s *trainer.Stage) { s.Optimizer.Beta1 = 1.5 },
		"epsilon is -1":      func(s *trainer.Stage) { s.Optimizer.Epsilon = -1 },
		"no such file":       func(s *trainer.Stage) { s.Resume = t.TempDir() },
		"step is -1":         func(s *trainer.Stage) { s.Step = -1 },
	} {
		stage := b.stage()
		spoil(&stage)
		if err := b.Begin(ctx, stage); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	b.begin(t, b.Trainer, func(s *trainer.Stage) { s.Incarnation = 5 })
	var stale *IncarnationError
	if err := b.Begin(ctx, b.stage()); !errors.As(err, &stale) || stale.Have != 5 || stale.Got != 1 {
		t.Errorf("begin of a lower incarnation: %v", err)
	}
	if _, err := b.Publish(ctx, rollout.Policy{Incarnation: 4}); !errors.As(err, &stale) {
		t.Errorf("publish of a lower incarnation: %v", err)
	}
	var order *trainer.StepOrderError
	if err := b.Load(ctx, b.batch(2)); !errors.As(err, &order) || order.Have != 0 {
		t.Errorf("load of step 2 first: %v", err)
	}
	for name, spoil := range map[string]func(g *trainer.Group){
		"vocabulary has":       func(g *trainer.Group) { g.Traces[0].Tokens = []int32{4000} },
		"negative":             func(g *trainer.Group) { g.Prompt[0] = -1 },
		"tokens at position":   func(g *trainer.Group) { g.Prompt = append(g.Prompt[:len(g.Prompt)-5:len(g.Prompt)-5], 5) },
		"no such file":         func(g *trainer.Group) { g.Images = []rollout.Image{{Digest: "0000"}} },
		"mask of 1":            func(g *trainer.Group) { g.Traces[1].Tokens, g.Traces[1].Mask = []int32{3, 4}, []bool{true} },
		"the model takes":      func(g *trainer.Group) { g.Traces[0].Tokens = make([]int32, 600) },
		"rollout log-probabil": func(g *trainer.Group) { g.Traces[0].RolloutLogprobs = make([]float32, 99) },
	} {
		batch := b.batch(1)
		spoil(&batch.Groups[1])
		var refused *trainer.GroupError
		err := b.Load(ctx, batch)
		if !errors.As(err, &refused) || refused.Group != "b" || (name != "negative" && !strings.Contains(err.Error(), name)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	batch := b.batch(1)
	batch.Plan = trainer.Plan{Ranks: 1, MicroBatches: 1, Parts: []trainer.Part{{Group: 0, From: 0, To: 2}}}
	if err := b.Load(ctx, batch); err == nil || !strings.Contains(err.Error(), "trace 2 is not planned") {
		t.Errorf("plan with a gap: %v", err)
	}
	b.train(t, b.Trainer, 1, 1)
	if _, err := b.Step(ctx, 1, trainer.Advantages{}); !errors.As(err, &order) || order.Have != 1 || order.Got != 1 {
		t.Errorf("step 1 again: %v", err)
	}
	if _, err := b.Step(ctx, 2, trainer.Advantages{}); err == nil {
		t.Error("step without a batch: no error")
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := b.Save(ctx, t.TempDir()); !errors.Is(err, ErrClosed) {
		t.Errorf("save after close: %v", err)
	}
}

// TestBadStepLeavesTheWeights checks that a step that is not finite counts as
// done and changes nothing.
func TestBadStepLeavesTheWeights(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.begin(t, b.Trainer, nil)
	before := b.publish(t, b.Trainer, 0).Policy.Digest
	batch := b.batch(1)
	if err := b.Load(ctx, batch); err != nil {
		t.Fatal(err)
	}
	a := b.advantages(batch)
	a.Values[2][1][0] = float32(math.NaN())
	_, err := b.Step(ctx, 1, a)
	var bad *trainer.BadStepError
	if !errors.As(err, &bad) || bad.Step != 1 || !slices.Equal(bad.Groups, []string{"c"}) {
		t.Fatalf("step with NaN: %v", err)
	}
	if got := b.publish(t, b.Trainer, 0).Policy.Digest; got != before {
		t.Error("a refused step changed the weights")
	}
	b.train(t, b.Trainer, 2, 2)
}

// TestReferenceIsChecked refuses a reference with another digest and takes the
// right one.
func TestReferenceIsChecked(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	stage := b.stage()
	stage.Reference = &trainer.Reference{Path: stage.Model, Digest: strings.Repeat("0", 64)}
	if err := b.Begin(ctx, stage); err == nil || !strings.Contains(err.Error(), "reference") {
		t.Errorf("wrong digest: %v", err)
	}
	stage.Reference.Digest = digestOf(t, stage.Model)
	if err := b.Begin(ctx, stage); err != nil {
		t.Fatal(err)
	}
	batch := b.batch(1)
	if err := b.Load(ctx, batch); err != nil {
		t.Fatal(err)
	}
	scores, err := b.Score(ctx, 1, trainer.ScoreOptions{Temperature: 1})
	if err != nil {
		t.Fatal(err)
	}
	for q := range scores.Old {
		for i := range scores.Old[q] {
			if !slices.Equal(scores.Old[q][i], scores.Reference[q][i]) {
				t.Errorf("group %d trace %d: old and reference differ under the same weights", q, i)
			}
		}
	}
	a := b.advantages(batch)
	a.Options.KL = trainer.KL{Kind: trainer.K3, Coef: 0.1}
	report, err := b.Step(ctx, 1, a)
	if err != nil || report.KLReference != 0 {
		t.Errorf("KL to itself is %v (%v)", report.KLReference, err)
	}
}

// TestPartsOfAPlan checks that cutting groups does not change the update beyond
// rounding.
func TestPartsOfAPlan(t *testing.T) {
	ctx := context.Background()
	norms := map[string]float64{}
	for name, parts := range map[string][]trainer.Part{"whole": nil, "cut": {
		{Group: 0, To: 3}, {Group: 1, To: 1}, {Group: 1, From: 1, To: 3}, {MicroBatch: 1, Group: 2, To: 3}, {MicroBatch: 1, Group: 3, To: 3}, {MicroBatch: 1, Group: 4, To: 2}, {MicroBatch: 1, Group: 4, From: 2, To: 3}}} {
		b := newBench(t)
		b.begin(t, b.Trainer, nil)
		batch := b.batch(1)
		batch.Plan = trainer.Plan{Ranks: 1, MicroBatches: 2, Parts: parts}
		if err := b.Load(ctx, batch); err != nil {
			t.Fatal(err)
		}
		report, err := b.Step(ctx, 1, b.advantages(batch))
		if err != nil {
			t.Fatal(err)
		}
		norms[name] = report.GradNorm
	}
	if d := math.Abs(norms["whole"]/norms["cut"] - 1); d > 1e-4 {
		t.Errorf("gradient norms %v differ by %v", norms, d)
	}
}

// TestOptionsReportEverything checks defaults and validation.
func TestOptionsReportEverything(t *testing.T) {
	_, err := New(Options{Lanes: -1, ChunkRows: -1, MaxPixels: -1})
	for _, word := range []string{"WorkDir", "Lanes", "ChunkRows", "MaxPixels"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s is not reported: %v", word, err)
		}
	}
}

// TestBadModelsAreRefused names the tensor that is missing, mis-shaped or not
// finite.
func TestBadModelsAreRefused(t *testing.T) {
	config, err := qwenvl.ParseConfig(configJSON(small()))
	if err != nil {
		t.Fatal(err)
	}
	l := arrange(config)
	const name = "model.layers.1.mlp.up_proj.weight"
	for what, spoil := range map[string]func(m map[string]safetensors.Tensor){
		"not in the checkpoint": func(m map[string]safetensors.Tensor) { delete(m, name) },
		"wrong shape": func(m map[string]safetensors.Tensor) {
			m[name] = safetensors.FromFloat32(make([]float32, 6), 2, 3)
		},
		"is NaN": func(m map[string]safetensors.Tensor) {
			values := make([]float32, m[name].Len())
			values[3] = float32(math.NaN())
			m[name] = safetensors.FromFloat32(values, m[name].Shape...)
		},
	} {
		dir := filepath.Join(t.TempDir(), "model")
		tensors := l.tensors(randomWeights(l, 1))
		spoil(tensors)
		if _, err := checkpoint.Write(dir, checkpoint.Contents{Files: map[string][]byte{"config.json": configJSON(small())}, Tensors: tensors}); err != nil {
			t.Fatal(err)
		}
		backend, err := New(Options{WorkDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		err = backend.Begin(context.Background(), trainer.Stage{Name: "s", Model: dir})
		if err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", what, err)
		}
		if err := backend.Close(); err != nil {
			t.Error(err)
		}
	}
}
