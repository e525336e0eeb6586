package internvl

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

func TestUnsupportedConfigs(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{`"internvl_chat"`, `"internvl"`, `model_type "internvl", want internvl_chat`},
		{`"InternVLChatModel"`, `"InternVLForConditionalGeneration"`, "architectures"},
		{`["InternVLChatModel"]`, `["InternVLChatModel", "InternVLChatModel"]`, "architectures"},
		{`"v2"`, `"v1"`, `ps_version: "v1"`},
		{`"ps_version": "v2", `, ``, `ps_version: ""`},
		{`"select_layer": -1`, `"select_layer": -4`, "select_layer"},
		{`"select_layer": -1,`, ``, "select_layer"},
		{`"internvl2_5"`, `"Hermes-2"`, `template: "Hermes-2"`},
		{`"image_fold": null`, `"image_fold": 2`, "image_fold"},
		{`"pad2square": false`, `"pad2square": true`, "pad2square"},
		{`"use_backbone_lora": 0`, `"use_backbone_lora": 16`, "use_backbone_lora: 16"},
		{`"use_llm_lora": 0`, `"use_llm_lora": 8`, "use_llm_lora: 8"},
		{`"torch_dtype": "bfloat16"`, `"quantization_config": {"quant_method": "awq"}`, "quantization_config"},
		{`"max_dynamic_patch": 12`, `"max_dynamic_patch": 0`, "max_dynamic_patch: 0"},
		{`"min_dynamic_patch": 1`, `"min_dynamic_patch": 13`, "min_dynamic_patch: 13 is above"},
		{`"use_thumbnail": true`, `"use_thumbnail": false`, "use_thumbnail"},
		{`"force_image_size": 8`, `"force_image_size": 16`, "force_image_size"},
		{`"downsample_ratio": 0.5`, `"downsample_ratio": 0.3`, "downsample_ratio: 0.3"},
		{`"downsample_ratio": 0.5`, `"downsample_ratio": 0`, "downsample_ratio: 0"},
		{`"downsample_ratio": 0.5`, `"downsample_ratio": 0.125`, "does not divide 4 patches"},
		{`["Qwen2ForCausalLM"], "model_type": "qwen2"`, `["InternLM2ForCausalLM"], "model_type": "internlm2"`, `model_type "internlm2", architectures ["InternLM2ForCausalLM"]`},
		{`["Qwen2ForCausalLM"], "model_type": "qwen2"`, `["Qwen3ForCausalLM"], "model_type": "qwen3"`, `"qwen3"`},
		{`"num_attention_heads": 4`, `"num_attention_heads": 3`, "do not divide"},
		{`"num_key_value_heads": 2`, `"num_key_value_heads": 0`, "num_key_value_heads: 0"},
		{`"num_key_value_heads": 2`, `"num_key_value_heads": 2, "head_dim": 3`, "head_dim"},
		{`"intermediate_size": 12`, `"intermediate_size": -12`, "intermediate_size: -12"},
		{`"vocab_size": 290`, `"vocab_size": 99999999`, "vocab_size: 99999999"},
		{`"silu"`, `"relu"`, `hidden_act: "relu"`},
		{`"rms_norm_eps": 1e-6`, `"rms_norm_eps": 0`, "rms_norm_eps"},
		{`"rope_theta": 1000000.0`, `"rope_theta": -1`, "rope_theta"},
		{`"rope_type": "dynamic"`, `"rope_type": "yarn"`, `rope_scaling: "yarn"`},
		{`"factor": 2.0`, `"factor": 0`, "rope_scaling.factor"},
		{`["full_attention", "full_attention"]`, `["full_attention", "sliding_attention"]`, `"sliding_attention" in layer 1`},
		{`"use_sliding_window": false`, `"use_sliding_window": true`, "use_sliding_window"},
		{`"intern_vit_6b"`, `"siglip"`, `vision_config.model_type: "siglip"`},
		{`"gelu"`, `"gelu_pytorch_tanh"`, "gelu_pytorch_tanh"},
		{`"layer_norm",`, `"rms_norm",`, `norm_type: "rms_norm"`},
		{`"norm_type": "layer_norm", `, ``, `norm_type: ""`},
		{`"qk_normalization": false`, `"qk_normalization": true`, "qk_normalization"},
		{`"qk_normalization": false, `, ``, "qk_normalization"},
		{`"qkv_bias": true, `, ``, "qkv_bias: is absent"},
		{`"num_channels": 3`, `"num_channels": 1`, "num_channels"},
		{`"use_moe": false`, `"use_moe": true`, "use_moe"},
		{`"patch_size": 2`, `"patch_size": 3`, "patches of 3 do not divide tiles of 8"},
		{`"num_attention_heads": 2`, `"num_attention_heads": 3`, "3 heads do not divide width 4"},
	} {
		_, err := parseConfig([]byte(edited(t, c.from, c.to)))
		if err == nil {
			t.Errorf("%s instead of %s is taken", c.to, c.from)
			continue
		}
		requireError(t, err, ErrUnsupported, c.want)
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	text := strings.NewReplacer(`"v2"`, `"v1"`, `"layer_norm",`, `"rms_norm",`, `"silu"`, `"relu"`).Replace(goodConfig)
	s := newSource(t, goodConfig)
	s.write(t, "config.json", text)
	s.refuse(t, ErrUnsupported, s.dir, "ps_version", "norm_type", "llm_config.hidden_act")
}

func TestRopeScaling(t *testing.T) {
	for _, text := range []string{
		edited(t, `{"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}`, `null`),
		edited(t, `{"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}`, `{"type": "default"}`),
	} {
		text := config(t, text).config(words{}, "F32")["text_config"].(object)
		if text["rope_scaling"] != nil {
			t.Errorf("rope_scaling is %v", text["rope_scaling"])
		}
	}
	old := config(t, edited(t, `"rope_type": "dynamic", `, ``))
	if old.Language.Rope.kind() != "dynamic" {
		t.Errorf("the old name of the key is not read: %+v", old.Language.Rope)
	}
}

func TestBadTokenizers(t *testing.T) {
	change := func(name, from, to string) func(*testing.T, *source) {
		return func(t *testing.T, s *source) {
			t.Helper()
			data, err := os.ReadFile(s.dir + "/" + name)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(data), from) {
				t.Fatalf("%s has no %s", name, from)
			}
			s.write(t, name, strings.ReplaceAll(string(data), from, to))
		}
	}
	const file = "tokenizer_config.json"
	for name, c := range map[string]struct {
		spoil func(*testing.T, *source)
		want  error
		words []string
	}{
		"no configuration": {func(t *testing.T, s *source) { s.remove(t, file) }, os.ErrNotExist, []string{file}},
		"no words":         {func(t *testing.T, s *source) { s.remove(t, "vocab.json") }, os.ErrNotExist, []string{"neither tokenizer.json nor both of vocab.json and merges.txt"}},
		"no merges":        {func(t *testing.T, s *source) { s.remove(t, "merges.txt") }, os.ErrNotExist, []string{"neither tokenizer.json nor both"}},
		"broken words":     {func(t *testing.T, s *source) { s.write(t, "vocab.json", "{") }, nil, []string{"vocab.json"}},
		"a broken merge":   {func(t *testing.T, s *source) { s.write(t, "merges.txt", "t h e\n") }, nil, []string{"merges.txt line 1"}},
		"a foreign merge":  {func(t *testing.T, s *source) { s.write(t, "merges.txt", "t q\n") }, nil, []string{`"t" "q"`}},
		"another class":    {change(file, "Qwen2Tokenizer", "InternLM2Tokenizer"), ErrUnsupported, []string{"InternLM2Tokenizer"}},
		"no added tokens":  {func(t *testing.T, s *source) { s.write(t, file, `{"tokenizer_class": "Qwen2Tokenizer"}`) }, ErrUnsupported, []string{"added_tokens_decoder"}},
		"a bad id":         {change(file, `"257"`, `"x"`), nil, []string{`"x" is no token id`}},
		"an id twice":      {change(file, `"257"`, `"258 "`), nil, []string{"no token id"}},
		"a stripping one":  {change(file, `"content"`, `"lstrip":true,"content"`), ErrUnsupported, []string{"lstrip"}},
		"no image token":   {change(file, "IMG_CONTEXT", "IMAGE"), ErrUnsupported, []string{"<IMG_CONTEXT>"}},
		"a plain end":      {change(file, `"content":"\u003c|im_end|\u003e","special":true`, `"content":"\u003c|im_end|\u003e"`), ErrUnsupported, []string{"<|im_end|>"}},
		"too many ids":     {change(file, `"257"`, `"290"`), ErrUnsupported, []string{"291 ids, llm_config.vocab_size is 290"}},
		"a broken file":    {func(t *testing.T, s *source) { s.write(t, "tokenizer.json", "[]") }, nil, []string{"tokenizer.json"}},
		"another model":    {func(t *testing.T, s *source) { s.write(t, "tokenizer.json", `{"model":{"type":"Unigram"}}`) }, tokenizer.ErrUnsupported, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource(t, goodConfig)
			c.spoil(t, s)
			s.refuse(t, c.want, c.words...)
		})
	}
}

// TestVideoTokenOfItsOwn checks that a vocabulary with <video> stays as it is.
func TestVideoTokenOfItsOwn(t *testing.T) {
	s := newSource(t, goodConfig)
	m, _ := imported(t, s)
	config := decode(t, m, "tokenizer_config.json")
	s.writeJSON(t, "tokenizer_config.json", config)
	importInto(t, s, s.target()+"-2", 0)
	again, err := tokenizer.Open(s.target() + "-2")
	if err != nil || again.Size() != 257+len(added)+1 {
		t.Errorf("%v", err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(goodConfig))
	f.Add([]byte(edited(f, `"downsample_ratio": 0.5`, `"downsample_ratio": 1e-300`)))
	f.Add([]byte(edited(f, `"patch_size": 2`, `"patch_size": 8`)))
	f.Add([]byte(edited(f, `"vocab_size": 290`, `"vocab_size": 9e99`)))
	f.Add([]byte(edited(f, `"qkv_bias": true`, `"qkv_bias": null`)))
	f.Add([]byte(`{"model_type": "internvl_chat"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseConfig(text)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, m := range c.moves() {
			for i, d := range m.shape {
				if d < 1 || i == 0 && d%len(m.to) != 0 {
					t.Fatalf("%s has the shape %v", m.from, m.shape)
				}
			}
			for _, name := range m.to {
				if seen[name] {
					t.Fatalf("two tensors become %s", name)
				}
				seen[name] = true
			}
		}
		files, err := c.files(words{ids: map[string]int32{}}, "BF16")
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range files {
			if strings.HasSuffix(name, ".json") && len(data) > 0 && !json.Valid(data) {
				t.Fatalf("%s is not JSON: %s", name, data)
			}
		}
	})
}

func FuzzTokenizerConfig(f *testing.F) {
	f.Add([]byte(`{"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 1e30, "added_tokens_decoder": {"3": {"content": "<img>", "special": true}}}`))
	f.Add([]byte(`{"tokenizer_class": "Qwen2TokenizerFast", "added_tokens_decoder": {"-1": {}, "99999999999": {}}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		w, added, err := parseWordsConfig(text)
		if err == nil && (w.maxLength < 1 || len(added) > maxAdded) {
			t.Fatalf("%+v, %d added tokens", w, len(added))
		}
	})
}
