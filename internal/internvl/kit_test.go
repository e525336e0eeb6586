package internvl

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

// goodConfig is an original config.json of the smallest sizes, with the keys
// that published ones have and this package does not read among them.
const goodConfig = `{
 "architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "auto_map": {"AutoConfig": "x.Y"},
 "downsample_ratio": 0.5, "dynamic_image_size": true, "force_image_size": 8, "image_fold": null,
 "min_dynamic_patch": 1, "max_dynamic_patch": 12, "pad2square": false, "ps_version": "v2", "select_layer": -1,
 "template": "internvl2_5", "use_thumbnail": true, "use_backbone_lora": 0, "use_llm_lora": 0, "torch_dtype": "bfloat16",
 "llm_config": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 8, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 12, "vocab_size": 290, "hidden_act": "silu",
  "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "moe_config": null,
  "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}, "layer_types": ["full_attention", "full_attention"],
  "bos_token_id": 1, "eos_token_id": 1, "use_sliding_window": false, "tie_word_embeddings": false},
 "vision_config": {"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", "hidden_size": 4, "num_hidden_layers": 2,
  "num_attention_heads": 2, "intermediate_size": 6, "image_size": 8, "patch_size": 2, "num_channels": 3, "layer_norm_eps": 1e-6,
  "hidden_act": "gelu", "norm_type": "layer_norm", "qk_normalization": false, "qkv_bias": true, "drop_path_rate": 0.1, "use_moe": false}
}`

// edited is goodConfig with one text in place of another.
func edited(t testing.TB, from, to string) string {
	t.Helper()
	if strings.Count(goodConfig, from) != 1 {
		t.Fatalf("%q is not there once", from)
	}
	return strings.Replace(goodConfig, from, to, 1)
}

func config(t testing.TB, text string) original {
	t.Helper()
	c, err := parseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// source is an original directory that is being made.
type source struct {
	dir     string
	tensors map[string]safetensors.Tensor
}

// newSource writes a whole original directory with the given config.json. No
// two elements of its tensors are alike.
func newSource(t testing.TB, text string) *source {
	t.Helper()
	s := &source{dir: filepath.Join(t.TempDir(), "original"), tensors: map[string]safetensors.Tensor{}}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	next := float32(0)
	for _, m := range config(t, text).moves() {
		values := make([]float32, safetensors.Tensor{Shape: m.shape}.Len())
		for i := range values {
			values[i] = next
			next++
		}
		s.tensors[m.from] = safetensors.FromFloat32(values, m.shape...)
	}
	s.write(t, "config.json", text)
	s.writeWords(t)
	s.writeWeights(t, 1)
	return s
}

func (s *source) write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *source) remove(t testing.TB, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(s.dir, name)); err != nil {
		t.Fatal(err)
	}
}

// added are the added tokens of the tokenizer, whose vocabulary is all bytes
// and one merge.
var added = []string{"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<img>", "</img>", "<IMG_CONTEXT>", "<box>", "</box>"}

// writeWords writes the tokenizer in its old form.
func (s *source) writeWords(t testing.TB) {
	t.Helper()
	learnt, err := tokenizer.Train(nil, tokenizer.MinVocab())
	if err != nil {
		t.Fatal(err)
	}
	vocab := map[string]int{}
	for id := range int32(256) {
		token, _ := learnt.Token(id)
		vocab[token] = int(id)
	}
	vocab["th"] = 256
	decoder := map[string]any{}
	for i, token := range added {
		decoder[fmt.Sprint(257+i)] = map[string]any{"content": token, "special": token != "<tool_call>"}
	}
	s.writeJSON(t, "vocab.json", vocab)
	s.write(t, "merges.txt", "#version: 0.2\nt h\n")
	s.writeJSON(t, "tokenizer_config.json", map[string]any{
		"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 1000, "added_tokens_decoder": decoder, "chat_template": "theirs",
	})
}

func (s *source) writeJSON(t testing.TB, name string, content any) {
	t.Helper()
	data, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, name, string(data))
}

// writeWeights writes the tensors as one file, or as so many and an index.
func (s *source) writeWeights(t testing.TB, shards int) {
	t.Helper()
	if shards == 1 {
		s.writeShard(t, "model.safetensors", s.tensors)
		return
	}
	parts := make([]map[string]safetensors.Tensor, shards)
	files := map[string]string{}
	for i, name := range slices.Sorted(maps.Keys(s.tensors)) {
		n := i % shards
		if parts[n] == nil {
			parts[n] = map[string]safetensors.Tensor{}
		}
		parts[n][name] = s.tensors[name]
		files[name] = shardFile(n, shards)
	}
	for n, part := range parts {
		s.writeShard(t, shardFile(n, shards), part)
	}
	s.writeJSON(t, "model.safetensors.index.json", map[string]any{"weight_map": files})
	s.remove(t, "model.safetensors")
}

func shardFile(n, shards int) string {
	return fmt.Sprintf("model-%05d-of-%05d.safetensors", n+1, shards)
}

func (s *source) writeShard(t testing.TB, name string, tensors map[string]safetensors.Tensor) {
	t.Helper()
	if err := safetensors.WriteFile(filepath.Join(s.dir, name), safetensors.File{Tensors: tensors}); err != nil {
		t.Fatal(err)
	}
}

// target is where a test imports to, beside the source.
func (s *source) target() string { return s.dir + "-hf" }

// requireAlone fails if anything but the source is in its parent directory:
// what was refused or broken off leaves nothing behind.
func (s *source) requireAlone(t testing.TB) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(s.dir))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

// refuse fails unless importing s fails with an error that wraps want (if any),
// says all of words, and leaves nothing behind.
func (s *source) refuse(t *testing.T, want error, words ...string) {
	t.Helper()
	_, err := Import(t.Context(), Options{Source: s.dir, Target: s.target()})
	requireError(t, err, want, words...)
	s.requireAlone(t)
}
