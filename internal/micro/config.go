package micro

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

// What the micro model shares with every Qwen2.5-VL.
const (
	patchSize         = 14
	temporalPatchSize = 2
	mergeSize         = 2
	windowSize        = 112
	rmsNormEps        = 1e-6
	ropeTheta         = 1e6
)

// mustBeFree refuses to write over anything.
func mustBeFree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("micro: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("micro: %s is not empty (it holds %s)", dir, entries[0].Name())
	}
	return nil
}

// addConfigs adds config.json, generation_config.json and
// preprocessor_config.json.
func (o Options) addConfigs(files map[string][]byte, tok *tokenizer.Tokenizer) error {
	id := func(token string) int32 { v, _ := tok.ID(token); return v } // Train always has them
	dtype := map[safetensors.DType]string{safetensors.F32: "float32", safetensors.BF16: "bfloat16"}[o.DType]
	config := map[string]any{
		"architectures": []string{"Qwen2_5_VLForConditionalGeneration"}, "model_type": "qwen2_5_vl",
		"attention_dropout": 0.0, "bos_token_id": id(tokenizer.EndOfText), "eos_token_id": id(tokenizer.EndOfTurn),
		"pad_token_id":          id(tokenizer.EndOfText),
		"vision_start_token_id": id(tokenizer.VisionStart), "vision_end_token_id": id(tokenizer.VisionEnd),
		"vision_token_id": id(tokenizer.VisionPad), "image_token_id": id(tokenizer.ImagePad),
		"video_token_id": id(tokenizer.VideoPad), "hidden_act": "silu", "hidden_size": o.Hidden,
		"initializer_range": 0.02, "intermediate_size": o.MLP, "max_position_embeddings": o.MaxPosition,
		"max_window_layers": o.Layers, "num_attention_heads": o.Heads, "num_hidden_layers": o.Layers,
		"num_key_value_heads": o.KVHeads, "rms_norm_eps": rmsNormEps, "rope_theta": ropeTheta,
		"rope_scaling":   map[string]any{"type": "mrope", "mrope_section": o.MropeSections},
		"sliding_window": o.MaxPosition, "use_sliding_window": false, "tie_word_embeddings": !o.Untied,
		"torch_dtype": dtype, "use_cache": true, "vocab_size": tok.Size(),
		"vision_config": map[string]any{
			"model_type": "qwen2_5_vl", "depth": o.VisionDepth, "hidden_act": "silu", "hidden_size": o.VisionHidden,
			"intermediate_size": o.VisionMLP, "num_heads": o.VisionHeads, "in_chans": 3, "out_hidden_size": o.Hidden,
			"patch_size": patchSize, "spatial_patch_size": patchSize, "spatial_merge_size": mergeSize,
			"window_size": windowSize, "fullatt_block_indexes": []int{o.VisionDepth - 1},
			"tokens_per_second": 2, "temporal_patch_size": temporalPatchSize,
		},
	}
	generation := map[string]any{
		"bos_token_id": id(tokenizer.EndOfText), "pad_token_id": id(tokenizer.EndOfText),
		"eos_token_id": []int32{id(tokenizer.EndOfTurn), id(tokenizer.EndOfText)},
		"do_sample":    true, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0,
	}
	preprocessor := map[string]any{
		"min_pixels": o.MinPixels, "max_pixels": o.MaxPixels, "patch_size": patchSize,
		"temporal_patch_size": temporalPatchSize, "merge_size": mergeSize,
		"image_mean":           []float64{0.48145466, 0.4578275, 0.40821073},
		"image_std":            []float64{0.26862954, 0.26130258, 0.27577711},
		"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
	}
	for name, v := range map[string]any{"config.json": config, "generation_config.json": generation,
		"preprocessor_config.json": preprocessor} {
		var out bytes.Buffer
		enc := json.NewEncoder(&out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(v); err != nil {
			return fmt.Errorf("micro: encoding %s: %w", name, err)
		}
		files[name] = out.Bytes()
	}
	return nil
}
