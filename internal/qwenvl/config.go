package qwenvl

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ErrConfig is wrapped by every error about a config.json that this package
// cannot run.
var ErrConfig = errors.New("unusable model config")

// Config is what config.json says about a Qwen2.5-VL: sizes of the text model,
// its special tokens, and the vision tower. Sizes count elements.
type Config struct {
	VocabSize        int     // rows of the embedding and of the head
	HiddenSize       int     // width of the text residual stream
	IntermediateSize int     // width of the text SwiGLU
	Layers           int     // text decoder layers
	Heads            int     // query heads
	KVHeads          int     // key-value heads; divides Heads
	HeadDim          int     // HiddenSize / Heads, even
	MaxPositions     int     // max_position_embeddings
	RMSNormEps       float32 // of the text norms; never assumed, always read
	RopeTheta        float64 // base of the text rotary frequencies
	MRopeSection     [3]int  // frequencies given to time, height, width; sum is HeadDim/2
	TieEmbeddings    bool    // the head is the embedding
	DType            string  // torch_dtype, informative; "" when absent

	EOS         []int // eos_token_id, one or several; may be empty
	ImageToken  int   // <|image_pad|>
	VideoToken  int   // <|video_pad|>
	VisionStart int   // <|vision_start|>
	VisionEnd   int   // <|vision_end|>

	Vision VisionConfig
}

// VisionConfig is the vision tower's part of config.json.
type VisionConfig struct {
	Depth             int    // blocks
	HiddenSize        int    // width of the residual stream
	IntermediateSize  int    // width of the SwiGLU
	Heads             int    // attention heads; head size is a multiple of 4
	InChannels        int    // colour planes
	PatchSize         int    // pixels of a patch's side
	TemporalPatchSize int    // frames in a patch; a still image is repeated
	MergeSize         int    // patches of a merged token's side
	WindowSize        int    // pixels of an attention window's side
	OutHiddenSize     int    // equals the text HiddenSize
	FullAttention     []bool // per block: attend over the whole image instead of windows
}

// HeadDim is the size of one vision attention head.
func (v VisionConfig) HeadDim() int { return v.HiddenSize / v.Heads }

// PatchDim is the number of values in one flattened patch: channels, frames,
// rows, columns, in that order.
func (v VisionConfig) PatchDim() int {
	return v.InChannels * v.TemporalPatchSize * v.PatchSize * v.PatchSize
}

// MergedDim is the width that the merger reads: MergeSize^2 patches side by side.
func (v VisionConfig) MergedDim() int { return v.HiddenSize * v.MergeSize * v.MergeSize }

// LoadConfig reads and checks config.json of a checkpoint directory.
func LoadConfig(dir string) (Config, error) {
	path := filepath.Join(dir, "config.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read model config: %w", err)
	}
	config, err := ParseConfig(raw)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return config, nil
}

// ParseConfig reads config.json in its published flat form (text fields at the
// top level) or with a nested text_config, and reports every field that the
// engine cannot honour at once.
func ParseConfig(raw []byte) (Config, error) {
	var top rawConfig
	if err := json.Unmarshal(raw, &top); err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	text := top.rawText
	if len(top.TextConfig) > 0 && string(top.TextConfig) != "null" {
		text = rawText{}
		if err := json.Unmarshal(top.TextConfig, &text); err != nil {
			return Config{}, fmt.Errorf("%w: text_config: %w", ErrConfig, err)
		}
	}
	c := &check{}
	config := top.build(text, c)
	if len(c.problems) > 0 {
		return Config{}, fmt.Errorf("%w: %w", ErrConfig, errors.Join(c.problems...))
	}
	return config, nil
}
