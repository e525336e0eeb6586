package qwenvl

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// microJSON is a flat config.json of a micro model, as a map to vary.
func microJSON() map[string]any {
	return map[string]any{
		"architectures": []string{"Qwen2_5_VLForConditionalGeneration"}, "model_type": "qwen2_5_vl",
		"hidden_act": "silu", "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 512,
		"num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1,
		"rms_norm_eps": 1e-6, "rope_theta": 1e6,
		"rope_scaling":          map[string]any{"type": "mrope", "mrope_section": []int{4, 6, 6}},
		"tie_word_embeddings":   true,
		"torch_dtype":           "float32",
		"vocab_size":            50,
		"eos_token_id":          41,
		"image_token_id":        42,
		"video_token_id":        43,
		"vision_start_token_id": 44, "vision_end_token_id": 45,
		"vision_config": map[string]any{
			"depth": 2, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 40, "num_heads": 2,
			"in_chans": 3, "out_hidden_size": 64, "patch_size": 14, "spatial_merge_size": 2,
			"window_size": 112, "fullatt_block_indexes": []int{1}, "temporal_patch_size": 2,
		},
	}
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func microConfig(t testing.TB) Config {
	t.Helper()
	config, err := ParseConfig(encode(t, microJSON()))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func TestParseConfigFlat(t *testing.T) {
	c := microConfig(t)
	if c.HeadDim != 32 || c.KVHeads != 1 || c.MRopeSection != [3]int{4, 6, 6} || !c.TieEmbeddings || c.RMSNormEps != 1e-6 {
		t.Errorf("text fields: %+v", c)
	}
	if !slices.Equal(c.EOS, []int{41}) || c.ImageToken != 42 || c.VisionEnd != 45 {
		t.Errorf("tokens: %+v", c)
	}
	v := c.Vision
	if v.HeadDim() != 16 || v.PatchDim() != 1176 || v.MergedDim() != 128 || !slices.Equal(v.FullAttention, []bool{false, true}) {
		t.Errorf("vision: %+v", v)
	}
}

func TestParseConfigNestedEqualsFlat(t *testing.T) {
	flat := microJSON()
	nested := map[string]any{"text_config": map[string]any{}}
	for key, value := range flat {
		switch key {
		case "model_type", "vision_config", "tie_word_embeddings", "image_token_id", "video_token_id",
			"vision_start_token_id", "vision_end_token_id", "architectures":
			nested[key] = value
		case "rope_scaling":
			nested["text_config"].(map[string]any)["rope_parameters"] = map[string]any{
				"rope_type": "default", "mrope_section": []int{4, 6, 6}, "rope_theta": 1e6}
		case "rope_theta":
		case "torch_dtype":
			nested["dtype"] = value
		default:
			nested["text_config"].(map[string]any)[key] = value
		}
	}
	got, err := ParseConfig(encode(t, nested))
	if err != nil {
		t.Fatal(err)
	}
	want := microConfig(t)
	if a, b := encode(t, got), encode(t, want); string(a) != string(b) {
		t.Errorf("nested %s\nflat   %s", a, b)
	}
}

func TestParseConfigRejects(t *testing.T) {
	vision := func(m map[string]any) map[string]any { return m["vision_config"].(map[string]any) }
	cases := map[string]struct {
		change func(map[string]any)
		want   string
	}{
		"other family":       {func(m map[string]any) { m["model_type"] = "llama" }, "model_type"},
		"no eps":             {func(m map[string]any) { delete(m, "rms_norm_eps") }, "rms_norm_eps is missing"},
		"zero layers":        {func(m map[string]any) { m["num_hidden_layers"] = 0 }, "num_hidden_layers is 0"},
		"huge vocabulary":    {func(m map[string]any) { m["vocab_size"] = 1 << 40 }, "vocab_size"},
		"heads":              {func(m map[string]any) { m["num_attention_heads"] = 3 }, "not a multiple of num_attention_heads"},
		"kv heads":           {func(m map[string]any) { m["num_key_value_heads"] = 3 }, "num_key_value_heads 3"},
		"section":            {func(m map[string]any) { m["rope_scaling"].(map[string]any)["mrope_section"] = []int{4, 6, 7} }, "sums to 17"},
		"yarn":               {func(m map[string]any) { m["rope_scaling"].(map[string]any)["type"] = "yarn" }, "yarn"},
		"no rope":            {func(m map[string]any) { delete(m, "rope_scaling") }, "mrope_section is missing"},
		"gelu":               {func(m map[string]any) { m["hidden_act"] = "gelu" }, "hidden_act"},
		"sliding":            {func(m map[string]any) { m["use_sliding_window"] = true }, "sliding"},
		"image token":        {func(m map[string]any) { m["image_token_id"] = 50 }, "outside the vocabulary"},
		"same tokens":        {func(m map[string]any) { m["image_token_id"] = 43 }, "both 43"},
		"eos":                {func(m map[string]any) { m["eos_token_id"] = "x" }, "eos_token_id"},
		"no vision":          {func(m map[string]any) { delete(m, "vision_config") }, "vision_config is missing"},
		"merger width":       {func(m map[string]any) { vision(m)["out_hidden_size"] = 63 }, "out_hidden_size"},
		"vision head":        {func(m map[string]any) { vision(m)["num_heads"] = 16 }, "multiple of 4"},
		"window":             {func(m map[string]any) { vision(m)["window_size"] = 100 }, "window_size"},
		"full block":         {func(m map[string]any) { vision(m)["fullatt_block_indexes"] = []int{2} }, "depth is 2"},
		"no full block list": {func(m map[string]any) { delete(vision(m), "fullatt_block_indexes") }, "fullatt_block_indexes"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			m := microJSON()
			tc.change(m)
			_, err := ParseConfig(encode(t, m))
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want ErrConfig with %q", err, tc.want)
			}
		})
	}
}

func TestParseConfigReportsAllProblems(t *testing.T) {
	m := microJSON()
	m["vocab_size"], m["hidden_act"] = 0, "relu"
	_, err := ParseConfig(encode(t, m))
	if err == nil || !strings.Contains(err.Error(), "vocab_size") || !strings.Contains(err.Error(), "hidden_act") {
		t.Errorf("got %v, want both problems", err)
	}
}

func TestLoadConfigNamesTheFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadConfig(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	path := filepath.Join(dir, "config.json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadConfig(dir); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), path) {
		t.Errorf("broken file: %v", err)
	}
}

func TestTensorsMatchNamesAndTie(t *testing.T) {
	c := microConfig(t)
	tied := map[string][]int{}
	for _, spec := range c.Tensors() {
		if _, twice := tied[spec.Name]; twice {
			t.Errorf("%s listed twice", spec.Name)
		}
		tied[spec.Name] = spec.Shape
	}
	// 12 vision + 1 per block x2, patch embed, 5 merger, 12 per text layer x2, embedding, norm.
	if len(tied) != 1+2*12+5+2*12+2 {
		t.Errorf("tied model has %d tensors: %v", len(tied), slices.Sorted(maps.Keys(tied)))
	}
	if _, ok := tied[NameHead]; ok {
		t.Error("a tied model must not list lm_head.weight")
	}
	c.TieEmbeddings = false
	if n := len(c.Tensors()); n != len(tied)+1 {
		t.Errorf("untied model has %d tensors", n)
	}
	if !slices.Equal(tied["model.layers.1.self_attn.k_proj.weight"], []int{32, 64}) {
		t.Errorf("k_proj: %v", tied["model.layers.1.self_attn.k_proj.weight"])
	}
}

func TestCanonicalName(t *testing.T) {
	for in, want := range map[string]string{
		"model.language_model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
		"model.visual.merger.ln_q.weight":                  "visual.merger.ln_q.weight",
		"lm_head.weight":                                   "lm_head.weight",
		"model.norm.weight":                                "model.norm.weight",
	} {
		if got := CanonicalName(in); got != want {
			t.Errorf("CanonicalName(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add(encode(f, microJSON()))
	f.Add([]byte(`{"model_type":"qwen2_5_vl","eos_token_id":[1,2]}`))
	f.Add([]byte(`{"text_config":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := ParseConfig(raw)
		if err != nil {
			if !errors.Is(err, ErrConfig) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		if c.HeadDim*c.Heads != c.HiddenSize || c.Heads%c.KVHeads != 0 || c.Vision.HeadDim()%4 != 0 {
			t.Fatalf("accepted %+v", c)
		}
	})
}
