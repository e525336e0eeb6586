package internvl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

// chatTemplate renders a conversation with the meaning of the template that
// transformers' converted checkpoints have: every turn between <|im_start|>ROLE
// and <|im_end|>, an image as its token and a line break, no system turn that
// nobody wrote.
const chatTemplate = `{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{{- '<IMG_CONTEXT>\n' -}}
{%- elif part['type'] == 'video' or 'video' in part -%}
{{- '<video>\n' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- endif -%}
`

// Image pixels are scaled to [0, 1] and normalised by ImageNet's statistics,
// which the original has in its code and not in its files.
var (
	imageMean = []float64{0.485, 0.456, 0.406}
	imageStd  = []float64{0.229, 0.224, 0.225}
)

// bicubic is PIL's number for the filter that images are resized with.
const bicubic = 3

type object = map[string]any

// files writes everything but the weights.
func (c original) files(w words, dtype safetensors.DType) (map[string][]byte, error) {
	files := map[string][]byte{tokenizer.File: w.json, "chat_template.jinja": []byte(chatTemplate)}
	for name, content := range map[string]object{
		checkpoint.ConfigFile: c.config(w, dtype),
		checkpoint.GenerationConfigFile: {
			"_from_model_config": true, "bos_token_id": c.Language.BOS,
			"eos_token_id": w.ids[tokenizer.EndOfTurn], "pad_token_id": w.ids[tokenizer.EndOfText],
		},
		"processor_config.json": c.processor(),
		"tokenizer_config.json": w.config(),
	} {
		var out bytes.Buffer
		e := json.NewEncoder(&out)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(content); err != nil {
			return nil, fmt.Errorf("encoding %s: %w", name, err)
		}
		files[name] = out.Bytes()
	}
	return files, nil
}

// torchTypes names element types as configurations do.
var torchTypes = map[safetensors.DType]string{safetensors.F32: "float32", safetensors.BF16: "bfloat16", safetensors.F16: "float16"}

// config is config.json. The end of a turn ends an answer, whatever llm_config
// says, whose value is that of the language model before it learnt to chat.
func (c original) config(w words, dtype safetensors.DType) object {
	l, v := c.Language, c.Vision
	text := object{
		"model_type": "qwen2", "architectures": l.Architectures, "dtype": torchTypes[dtype],
		"hidden_size": l.Hidden, "num_hidden_layers": l.Layers, "num_attention_heads": l.Heads, "num_key_value_heads": l.KVHeads,
		"intermediate_size": l.MLP, "vocab_size": l.Vocab, "max_position_embeddings": l.MaxPosition, "hidden_act": l.Act,
		"rms_norm_eps": l.Epsilon, "rope_theta": l.Theta, "rope_scaling": nil, "attention_dropout": l.AttentionDropout,
		"use_sliding_window": false, "sliding_window": nil, "tie_word_embeddings": l.Tied, "use_cache": true,
		"bos_token_id": l.BOS, "eos_token_id": w.ids[tokenizer.EndOfTurn], "pad_token_id": w.ids[tokenizer.EndOfText],
	}
	if r := l.Rope; r != nil && r.kind() != "default" {
		text["rope_scaling"] = object{"type": r.kind(), "rope_type": r.kind(), "factor": r.Factor}
	}
	return object{
		"architectures": []string{"InternVLForConditionalGeneration"}, "model_type": "internvl", "dtype": torchTypes[dtype],
		"image_token_id": w.ids[imageToken], "image_seq_length": c.tileTokens(), "downsample_ratio": c.Downsample,
		"projector_hidden_act": "gelu", "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
		"tie_word_embeddings": l.Tied, "text_config": text,
		"vision_config": object{
			"model_type": "internvl_vision", "dtype": torchTypes[dtype],
			"hidden_size": v.Hidden, "num_hidden_layers": v.Layers, "num_attention_heads": v.Heads, "intermediate_size": v.MLP,
			"image_size": []int{v.Image, v.Image}, "patch_size": []int{v.Patch, v.Patch}, "num_channels": 3,
			"hidden_act": v.Act, "norm_type": v.Norm, "layer_norm_eps": v.Epsilon, "attention_bias": *v.QKVBias, "use_qk_norm": false,
			"attention_dropout": v.AttentionDropout, "projection_dropout": v.Dropout, "hidden_dropout_prob": 0,
			"use_absolute_position_embeddings": true, "use_mask_token": false,
			// The original has no norm behind the last block; this flag is what leaves it
			// out, and nothing is pooled.
			"use_mean_pooling": true,
		},
	}
}

// processor is processor_config.json.
func (c original) processor() object {
	pixels := func(o object) object {
		o["do_convert_rgb"], o["do_resize"], o["do_rescale"], o["do_normalize"] = true, true, true, true
		o["rescale_factor"], o["image_mean"], o["image_std"], o["resample"] = 1.0/255, imageMean, imageStd, bicubic
		o["size"] = object{"height": c.Vision.Image, "width": c.Vision.Image}
		return o
	}
	return object{
		"processor_class": "InternVLProcessor", "image_seq_length": c.tileTokens(),
		"image_processor": pixels(object{
			"image_processor_type": "GotOcr2ImageProcessor",
			"crop_to_patches":      true, "min_patches": min(c.MinTiles, c.maxTiles()), "max_patches": c.maxTiles(),
		}),
		"video_processor": pixels(object{"video_processor_type": "InternVLVideoProcessor"}),
	}
}

// config is tokenizer_config.json.
func (w words) config() object {
	decoder := object{}
	for _, a := range w.added {
		decoder[strconv.Itoa(int(a.ID))] = tokenizer.AddedEntry{Content: a.Content, Special: a.Special}
	}
	return object{
		"tokenizer_class": "Qwen2Tokenizer", "processor_class": "InternVLProcessor", "model_max_length": w.maxLength,
		"add_bos_token": false, "add_prefix_space": false, "clean_up_tokenization_spaces": false, "errors": "replace",
		"split_special_tokens": false, "bos_token": nil, "unk_token": nil,
		"eos_token": tokenizer.EndOfTurn, "pad_token": tokenizer.EndOfText, "added_tokens_decoder": decoder,
		"extra_special_tokens": map[string]string{
			"start_image_token": startImage, "end_image_token": endImage,
			"context_image_token": imageToken, "video_token": videoToken,
		},
	}
}

func sortAdded(added []tokenizer.Added) {
	slices.SortFunc(added, func(a, b tokenizer.Added) int { return int(a.ID) - int(b.ID) })
}
