package graph

import (
	"context"
	"crypto/sha256"
	"math"
	"path/filepath"
	"testing"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/internal/vision"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// sampleGroup lets the native engine answer a prompt from the weights at path.
func sampleGroup(t *testing.T, path string, g trainer.Group, pixels []vision.Patches) (traces []trainer.Sequence, entropies [][]float32) {
	t.Helper()
	model, err := qwenvl.LoadModel(path)
	if err != nil {
		t.Fatal(err)
	}
	engine, err := qwenvl.New(model, qwenvl.Options{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	request := qwenvl.Request{Prompt: g.Prompt, Choices: 5, Sampling: qwenvl.Sampling{Temperature: 0.9, TopP: 1, MaxTokens: 14, Seed: 1 << 12}}
	for i, p := range pixels {
		request.Images = append(request.Images, qwenvl.Image{Digest: sha256.Sum256([]byte(g.Images[i].Digest)),
			Grid: qwenvl.Grid{T: p.Grid[0], H: p.Grid[1], W: p.Grid[2]}, Patches: p.Pixels})
	}
	result, err := engine.Generate(context.Background(), request)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range result.Choices {
		traces = append(traces, trainer.Sequence{Tokens: c.Tokens, RolloutLogprobs: c.LogProbs})
		entropies = append(entropies, c.Entropies)
	}
	return traces, entropies
}

// TestEngineAndTrainerAgree compares the log-probabilities and entropies of the
// engine that samples with those of the trainer, before and after an update
// that reaches the engine through a published directory.
func TestEngineAndTrainerAgree(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	config := writeModel(t, filepath.Join(dir, "model"), quick(), 5)
	images := folder(filepath.Join(dir, "images"))
	group := trainer.Group{ID: "g", Images: []rollout.Image{writeImage(t, string(images), 84, 84, 30), writeImage(t, string(images), 112, 56, 200)}}
	backend, err := New(Options{WorkDir: dir, Images: images})
	if err != nil {
		t.Fatal(err)
	}
	if err := backend.Begin(ctx, trainer.Stage{Incarnation: 1, Model: filepath.Join(dir, "model")}); err != nil {
		t.Fatal(err)
	}
	var pixels []vision.Patches
	for _, image := range group.Images {
		data, err := images.Get(ctx, image.Digest)
		if err != nil {
			t.Fatal(err)
		}
		p, err := vision.Preprocess(data, backend.images.how.config)
		if err != nil {
			t.Fatal(err)
		}
		pixels = append(pixels, p)
	}
	group.Prompt = imagePrompt(config, vision.Tokens(pixels[0].Grid, config.Vision.MergeSize), []int32{5, 6}, imagePrompt(config, vision.Tokens(pixels[1].Grid, config.Vision.MergeSize), []int32{9}, []int32{7, 8}))
	for step := 1; step <= 2; step++ {
		offer, err := backend.Publish(ctx, rollout.Policy{Incarnation: 1, Version: step - 1})
		if err != nil {
			t.Fatal(err)
		}
		traces, entropies := sampleGroup(t, offer.Path, group, pixels)
		group.Traces = traces
		batch := trainer.Batch{Step: step, Groups: []trainer.Group{group}}
		if err := backend.Load(ctx, batch); err != nil {
			t.Fatal(err)
		}
		scores, err := backend.Score(ctx, step, trainer.ScoreOptions{Temperature: 0.9})
		if err != nil {
			t.Fatal(err)
		}
		for i, trace := range traces {
			for j := range trace.Tokens {
				if d := math.Abs(float64(scores.Old[0][i][j] - trace.RolloutLogprobs[j])); !(d < 1e-4) {
					t.Errorf("step %d trace %d token %d: trainer %v, engine %v", step, i, j, scores.Old[0][i][j], trace.RolloutLogprobs[j])
				}
				if d := math.Abs(float64(scores.Entropy[0][i][j] - entropies[i][j])); !(d < 1e-4) {
					t.Errorf("step %d trace %d token %d: entropy %v in the trainer, %v in the engine", step, i, j, scores.Entropy[0][i][j], entropies[i][j])
				}
			}
		}
		report, err := backend.Step(ctx, step, trainer.Advantages{Values: [][][]float32{{{1}, {-1}, {0.5}, {-0.5}, {0}}}, Options: trainer.StepOptions{
			Loss: trainer.PPO, ClipLow: 0.2, ClipHigh: 0.2, Aggregation: trainer.TokenMean, Temperature: 0.9, LearningRate: 1e-2,
			Denominators: trainer.CountDenominators(batch.Groups, 14, nil)}})
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(report.Gap.WMean-1) > 1e-4 || math.Abs(report.Gap.KL) > 1e-4 {
			t.Errorf("step %d: gap %+v between engines that agree", step, report.Gap)
		}
	}
	if err := backend.Close(); err != nil {
		t.Fatal(err)
	}
}
