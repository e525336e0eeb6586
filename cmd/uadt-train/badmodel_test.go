package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// copyModel copies the shared model directory.
func copyModel(t *testing.T, l *laboratory) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	if err := os.CopyFS(dir, os.DirFS(l.path("model"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// rewriteTensors writes the weights of a model directory again after change.
func rewriteTensors(t *testing.T, dir string, change func(map[string]safetensors.Tensor)) {
	t.Helper()
	model, err := checkpoint.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	tensors := map[string]safetensors.Tensor{}
	for _, name := range model.Names() {
		_, shape, _ := model.Info(name)
		values, err := model.Float32(name)
		if err != nil {
			t.Fatal(err)
		}
		tensors[name] = safetensors.FromFloat32(values, shape...)
	}
	if err := model.Close(); err != nil {
		t.Fatal(err)
	}
	change(tensors)
	if err := safetensors.WriteFile(filepath.Join(dir, "model.safetensors"), safetensors.File{Tensors: tensors}); err != nil {
		t.Fatal(err)
	}
}

func TestBadModels(t *testing.T) {
	l := lab(t)
	const norm = "model.norm.weight"
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		words []string
	}{
		{"missing tensor", func(t *testing.T, dir string) {
			rewriteTensors(t, dir, func(all map[string]safetensors.Tensor) { delete(all, norm) })
		}, []string{norm}},
		{"mis-shaped tensor", func(t *testing.T, dir string) {
			rewriteTensors(t, dir, func(all map[string]safetensors.Tensor) {
				all[norm] = safetensors.FromFloat32(make([]float32, 3), 3)
			})
		}, []string{norm, "[3]"}},
		{"no weights", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "model.safetensors")); err != nil {
				t.Fatal(err)
			}
		}, []string{"model.safetensors"}},
		{"weights cut off", func(t *testing.T, dir string) {
			path := filepath.Join(dir, "model.safetensors")
			data := readFile(t, path)
			writeFile(t, path, data[:len(data)-100])
		}, []string{"model.safetensors"}},
		{"config.json of another family", func(t *testing.T, dir string) {
			writeFile(t, filepath.Join(dir, "config.json"), []byte(`{"model_type": "llama"}`))
		}, []string{"config.json", "llama"}},
		{"a tokenizer larger than the embedding", largerTokenizer, []string{"tokenizer.json"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := copyModel(t, l)
			c.spoil(t, dir)
			words := append([]string{dir}, c.words...)
			recipe, runs := writeRecipe(t, func(runs string) string {
				return strings.Replace(l.rlOnly(runs), l.path("model"), dir, 1)
			})
			invoke(t, "--config", recipe).expect(t, exitFailed, words...)
			requireNoCheckpoint(t, runs)
			invoke(t, "serve", "--model", dir, "--addr", "127.0.0.1:0").expect(t, exitFailed, words...)
		})
	}
}

// largerTokenizer adds tokens for which the model has no rows.
func largerTokenizer(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "tokenizer.json")
	var all map[string]any
	if err := json.Unmarshal(readFile(t, path), &all); err != nil {
		t.Fatal(err)
	}
	added := all["added_tokens"].([]any)
	all["added_tokens"] = append(added, map[string]any{
		"id": 100000, "content": "<|beyond|>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
	})
	data, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, data)
}
