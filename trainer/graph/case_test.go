package graph

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"testing"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// folder is an image store in a directory, one file per digest.
type folder string

func (f folder) Get(_ context.Context, digest string) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(f), digest))
}

// gradientCase is what tests/python/test_gradients.py asks for: the gradient of
// one batch, on the checkpoint "model" with the images "images" beside it. The
// field names of batch and options are those of package trainer.
type gradientCase struct {
	Stage      trainer.Stage
	Batch      trainer.Batch
	Advantages trainer.Advantages
	Score      bool // score the batch first, so that old and reference log-probabilities exist
	// Old replaces the scored old log-probabilities, so that ratios are not 1.
	Old [][][]float32
}

// runCase answers a case directory: result.safetensors with the loss, every
// gradient, and log-probabilities and entropies trace after trace.
func runCase(t *testing.T, dir string) safetensors.File {
	t.Helper()
	ctx := context.Background()
	text, err := os.ReadFile(filepath.Join(dir, "case.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c gradientCase
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		t.Fatal(err)
	}
	backend, err := New(Options{WorkDir: filepath.Join(dir, "work"), Images: folder(filepath.Join(dir, "images")), ChunkRows: 128})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := backend.Close(); err != nil {
			t.Error(err)
		}
	}()
	c.Stage.Model = filepath.Join(dir, "model")
	if c.Stage.Reference != nil {
		c.Stage.Reference.Path = filepath.Join(dir, c.Stage.Reference.Path)
		c.Stage.Reference.Digest = digestOf(t, c.Stage.Reference.Path)
	}
	if err := backend.Begin(ctx, c.Stage); err != nil {
		t.Fatal(err)
	}
	if err := backend.Load(ctx, c.Batch); err != nil {
		t.Fatal(err)
	}
	options := c.Advantages.Options
	scores, err := backend.Score(ctx, c.Batch.Step, trainer.ScoreOptions{Temperature: options.Temperature, Banned: options.Banned})
	if err != nil {
		t.Fatal(err)
	}
	if !c.Score {
		backend.stage.loaded[c.Batch.Step].scores = nil
	}
	if c.Old != nil {
		backend.stage.loaded[c.Batch.Step].scores.Old = c.Old
	}
	report, gradients, err := backend.Gradients(ctx, c.Batch.Step, c.Advantages)
	if err != nil {
		t.Fatal(err)
	}
	var lp, entropy []float32
	for i := range scores.Old {
		for j := range scores.Old[i] {
			lp = append(lp, scores.Old[i][j]...)
			entropy = append(entropy, scores.Entropy[i][j]...)
		}
	}
	result := safetensors.File{Tensors: gradients, Metadata: map[string]string{"report": string(mustJSON(t, report))}}
	result.Tensors["logprobs"] = safetensors.FromFloat32(lp)
	result.Tensors["entropies"] = safetensors.FromFloat32(entropy)
	if err := safetensors.WriteFile(filepath.Join(dir, "result.safetensors"), result); err != nil {
		t.Fatal(err)
	}
	return result
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func digestOf(t testing.TB, dir string) string {
	t.Helper()
	model, err := checkpoint.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := model.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := model.Close(); err != nil {
		t.Fatal(err)
	}
	return digest
}

// writeModel writes a test model directory with random weights.
func writeModel(t testing.TB, dir string, s tinySizes, seed uint64) qwenvl.Config {
	t.Helper()
	config, err := qwenvl.ParseConfig(configJSON(s))
	if err != nil {
		t.Fatal(err)
	}
	l := arrange(config)
	v := config.Vision
	files := map[string][]byte{"config.json": configJSON(s), "preprocessor_config.json": mustJSON(t, map[string]any{
		"patch_size": v.PatchSize, "merge_size": v.MergeSize, "temporal_patch_size": v.TemporalPatchSize, "min_pixels": 64, "max_pixels": 12544})}
	if _, err := checkpoint.Write(dir, checkpoint.Contents{Files: files, Tensors: l.tensors(randomWeights(l, seed))}); err != nil {
		t.Fatal(err)
	}
	return config
}

// writeImage writes a PNG of a gradient and returns its reference.
func writeImage(t testing.TB, dir string, width, height, tint int) rollout.Image {
	t.Helper()
	img := image.NewRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			img.Set(x, y, color.RGBA{uint8(x * 255 / width), uint8(y * 255 / height), uint8(tint), 255})
		}
	}
	var buf bytes.Buffer
	if err := png.Encode(&buf, img); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(buf.Bytes())
	digest := hex.EncodeToString(sum[:])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, digest), buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return rollout.Image{Digest: digest, MediaType: "image/png"}
}

// imagePrompt is a prompt with one image of n tokens.
func imagePrompt(c qwenvl.Config, n int, before, after []int32) []int32 {
	out := append([]int32(nil), before...)
	out = append(out, int32(c.VisionStart))
	for range n {
		out = append(out, int32(c.ImageToken))
	}
	out = append(out, int32(c.VisionEnd))
	return append(out, after...)
}

// TestGradientCase answers the case that UADT_GRADIENT_CASE names, for the
// comparison with PyTorch in tests/python, and one of its own without it.
func TestGradientCase(t *testing.T) {
	dir := os.Getenv("UADT_GRADIENT_CASE")
	own := dir == ""
	if own {
		dir = t.TempDir()
		config := writeModel(t, filepath.Join(dir, "model"), small(), 3)
		picture := writeImage(t, filepath.Join(dir, "images"), 16, 24, 90)
		batch := trainer.Batch{Step: 1, Groups: []trainer.Group{{ID: "g", Prompt: imagePrompt(config, 6, []int32{5}, []int32{6, 7}),
			Images: []rollout.Image{picture}, Traces: []trainer.Sequence{{Tokens: []int32{3, 4, 5}}, {Tokens: []int32{9}}}}}}
		c := gradientCase{Batch: batch, Stage: trainer.Stage{Name: "case"}, Advantages: trainer.Advantages{
			Values:  [][][]float32{{{1}, {1}}},
			Options: trainer.StepOptions{Loss: trainer.NLL, Aggregation: trainer.TokenMean, Temperature: 1, Denominators: trainer.Denominators{Tokens: 4, Sequences: 2, MaxTokens: 8}}}}
		if err := os.WriteFile(filepath.Join(dir, "case.json"), mustJSON(t, c), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	result := runCase(t, dir)
	nonZero := 0
	for name, tensor := range result.Tensors {
		values, err := tensor.Float32()
		if err != nil {
			t.Fatal(err)
		}
		size := norm(values)
		if !finite(size) {
			t.Errorf("%s: norm is %v", name, size)
		}
		if size > 0 {
			nonZero++
		}
	}
	if own && nonZero < len(result.Tensors)*9/10 {
		t.Errorf("only %d of %d tensors have a gradient", nonZero, len(result.Tensors))
	}
}
