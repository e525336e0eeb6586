package qwenvl

import (
	"encoding/json"
	"fmt"
	"slices"
)

// rawText holds the text fields as config.json spells them. Pointers tell an
// absent field from a zero.
type rawText struct {
	VocabSize        *int            `json:"vocab_size"`
	HiddenSize       *int            `json:"hidden_size"`
	IntermediateSize *int            `json:"intermediate_size"`
	Layers           *int            `json:"num_hidden_layers"`
	Heads            *int            `json:"num_attention_heads"`
	KVHeads          *int            `json:"num_key_value_heads"`
	HeadDim          *int            `json:"head_dim"`
	MaxPositions     *int            `json:"max_position_embeddings"`
	MaxWindowLayers  *int            `json:"max_window_layers"`
	SlidingWindow    bool            `json:"use_sliding_window"`
	RMSNormEps       *float64        `json:"rms_norm_eps"`
	RopeTheta        *float64        `json:"rope_theta"`
	RopeScaling      *rawRope        `json:"rope_scaling"`
	RopeParameters   *rawRope        `json:"rope_parameters"`
	HiddenAct        string          `json:"hidden_act"`
	EOS              json.RawMessage `json:"eos_token_id"`
	DType            string          `json:"torch_dtype"`
	DTypeNew         string          `json:"dtype"`
	Tie              *bool           `json:"tie_word_embeddings"`
}

// rawRope is rope_scaling of the published files and rope_parameters of newer
// ones.
type rawRope struct {
	Type    string   `json:"type"`
	NewType string   `json:"rope_type"`
	Section []int    `json:"mrope_section"`
	Theta   *float64 `json:"rope_theta"`
}

type rawVision struct {
	Depth             *int   `json:"depth"`
	HiddenSize        *int   `json:"hidden_size"`
	IntermediateSize  *int   `json:"intermediate_size"`
	Heads             *int   `json:"num_heads"`
	InChans           *int   `json:"in_chans"`
	InChannels        *int   `json:"in_channels"`
	PatchSize         *int   `json:"patch_size"`
	TemporalPatchSize *int   `json:"temporal_patch_size"`
	MergeSize         *int   `json:"spatial_merge_size"`
	WindowSize        *int   `json:"window_size"`
	OutHiddenSize     *int   `json:"out_hidden_size"`
	FullAttention     []int  `json:"fullatt_block_indexes"`
	HiddenAct         string `json:"hidden_act"`
}

type rawConfig struct {
	rawText
	ModelType   string          `json:"model_type"`
	TextConfig  json.RawMessage `json:"text_config"`
	Vision      *rawVision      `json:"vision_config"`
	ImageToken  *int            `json:"image_token_id"`
	VideoToken  *int            `json:"video_token_id"`
	VisionStart *int            `json:"vision_start_token_id"`
	VisionEnd   *int            `json:"vision_end_token_id"`
}

// check collects every problem of a config.
type check struct{ problems []error }

func (c *check) failf(format string, args ...any) {
	c.problems = append(c.problems, fmt.Errorf(format, args...))
}

// maxSize bounds every size field, so that products of two stay far from
// overflow and a hostile file cannot ask for absurd memory by one number.
const maxSize = 1 << 24

// size returns a required positive size, or 1 with a problem noted, so that
// the later checks can go on dividing.
func (c *check) size(name string, value *int) int {
	switch {
	case value == nil:
		c.failf("%s is missing", name)
	case *value < 1 || *value > maxSize:
		c.failf("%s is %d, want 1 to %d", name, *value, maxSize)
	default:
		return *value
	}
	return 1
}

func (c *check) sizeOr(name string, value *int, fallback int) int {
	if value == nil {
		return fallback
	}
	return c.size(name, value)
}

func (c *check) act(name, value string) {
	if value != "" && value != "silu" {
		c.failf("%s is %q, want \"silu\"", name, value)
	}
}

func (r *rawConfig) build(text rawText, c *check) Config {
	if r.ModelType != "qwen2_5_vl" {
		c.failf("model_type is %q, want \"qwen2_5_vl\"", r.ModelType)
	}
	config := text.build(c)
	// The top level owns the tie and, in nested files, may own dtype and EOS.
	if r.Tie != nil {
		config.TieEmbeddings = *r.Tie
	}
	if config.EOS == nil {
		config.EOS = c.eos(r.EOS)
	}
	config.DType = firstNonEmpty(config.DType, r.DType, r.DTypeNew)
	for _, field := range []struct {
		name  string
		value *int
		into  *int
	}{
		{"image_token_id", r.ImageToken, &config.ImageToken},
		{"video_token_id", r.VideoToken, &config.VideoToken},
		{"vision_start_token_id", r.VisionStart, &config.VisionStart},
		{"vision_end_token_id", r.VisionEnd, &config.VisionEnd},
	} {
		if field.value == nil {
			c.failf("%s is missing", field.name)
			continue
		}
		*field.into = *field.value
		c.token(field.name, *field.value, config.VocabSize)
	}
	for _, id := range config.EOS {
		c.token("eos_token_id", id, config.VocabSize)
	}
	if r.ImageToken != nil && r.VideoToken != nil && *r.ImageToken == *r.VideoToken {
		c.failf("image_token_id and video_token_id are both %d", *r.ImageToken)
	}
	if r.Vision == nil {
		c.failf("vision_config is missing")
		return config
	}
	config.Vision = r.Vision.build(c)
	if config.Vision.OutHiddenSize != config.HiddenSize {
		c.failf("vision_config.out_hidden_size is %d, want hidden_size %d",
			config.Vision.OutHiddenSize, config.HiddenSize)
	}
	return config
}

func (t *rawText) build(c *check) Config {
	config := Config{
		VocabSize:        c.size("vocab_size", t.VocabSize),
		HiddenSize:       c.size("hidden_size", t.HiddenSize),
		IntermediateSize: c.size("intermediate_size", t.IntermediateSize),
		Layers:           c.size("num_hidden_layers", t.Layers),
		Heads:            c.size("num_attention_heads", t.Heads),
		MaxPositions:     c.size("max_position_embeddings", t.MaxPositions),
		TieEmbeddings:    t.Tie != nil && *t.Tie,
		DType:            firstNonEmpty(t.DType, t.DTypeNew),
		EOS:              c.eos(t.EOS),
	}
	config.KVHeads = c.sizeOr("num_key_value_heads", t.KVHeads, config.Heads)
	c.act("hidden_act", t.HiddenAct)
	if config.HiddenSize%config.Heads != 0 {
		c.failf("hidden_size %d is not a multiple of num_attention_heads %d", config.HiddenSize, config.Heads)
	}
	if config.Heads%config.KVHeads != 0 {
		c.failf("num_attention_heads %d is not a multiple of num_key_value_heads %d", config.Heads, config.KVHeads)
	}
	config.HeadDim = config.HiddenSize / config.Heads
	if t.HeadDim != nil && *t.HeadDim != config.HeadDim {
		c.failf("head_dim is %d, want hidden_size / num_attention_heads = %d", *t.HeadDim, config.HeadDim)
	}
	if config.HeadDim%2 != 0 {
		c.failf("head size %d is odd", config.HeadDim)
	}
	if t.RMSNormEps == nil {
		c.failf("rms_norm_eps is missing")
	} else if eps := *t.RMSNormEps; !(eps > 0 && eps < 1) {
		c.failf("rms_norm_eps is %v, want between 0 and 1", eps)
	} else {
		config.RMSNormEps = float32(eps)
	}
	if t.SlidingWindow && (t.MaxWindowLayers == nil || *t.MaxWindowLayers < config.Layers) {
		c.failf("use_sliding_window is set for layers below num_hidden_layers; the engine attends to everything")
	}
	t.rope(&config, c)
	return config
}

func (t *rawText) rope(config *Config, c *check) {
	config.RopeTheta = 1_000_000 // the published default when no field is there
	if t.RopeTheta != nil {
		config.RopeTheta = *t.RopeTheta
	}
	rope := t.RopeScaling
	if rope == nil {
		rope = t.RopeParameters
	}
	if rope == nil {
		c.failf("rope_scaling with mrope_section is missing")
		return
	}
	if rope.Theta != nil {
		config.RopeTheta = *rope.Theta
	}
	if theta := config.RopeTheta; !(theta > 1 && theta < 1e12) {
		c.failf("rope_theta is %v, want between 1 and 1e12", theta)
	}
	for _, kind := range []string{rope.Type, rope.NewType} {
		if kind != "" && kind != "mrope" && kind != "default" {
			c.failf("rope type is %q, want \"mrope\" or \"default\"", kind)
		}
	}
	if len(rope.Section) != 3 {
		c.failf("mrope_section has %d entries, want 3", len(rope.Section))
		return
	}
	sum := 0
	for i, n := range rope.Section {
		if n < 0 || n > maxSize {
			c.failf("mrope_section[%d] is %d", i, n)
			return
		}
		config.MRopeSection[i] = n
		sum += n
	}
	if sum != config.HeadDim/2 {
		c.failf("mrope_section sums to %d, want half the head size %d", sum, config.HeadDim/2)
	}
}

func (v *rawVision) build(c *check) VisionConfig {
	const at = "vision_config."
	config := VisionConfig{
		Depth:             c.size(at+"depth", v.Depth),
		HiddenSize:        c.size(at+"hidden_size", v.HiddenSize),
		IntermediateSize:  c.size(at+"intermediate_size", v.IntermediateSize),
		Heads:             c.size(at+"num_heads", v.Heads),
		PatchSize:         c.sizeOr(at+"patch_size", v.PatchSize, 14),
		TemporalPatchSize: c.sizeOr(at+"temporal_patch_size", v.TemporalPatchSize, 2),
		MergeSize:         c.sizeOr(at+"spatial_merge_size", v.MergeSize, 2),
		WindowSize:        c.sizeOr(at+"window_size", v.WindowSize, 112),
		OutHiddenSize:     c.size(at+"out_hidden_size", v.OutHiddenSize),
	}
	channels := v.InChans
	if channels == nil {
		channels = v.InChannels
	}
	config.InChannels = c.sizeOr(at+"in_chans", channels, 3)
	c.act(at+"hidden_act", v.HiddenAct)
	if config.HiddenSize%config.Heads != 0 {
		c.failf("vision_config.hidden_size %d is not a multiple of num_heads %d", config.HiddenSize, config.Heads)
	} else if config.HeadDim()%4 != 0 {
		c.failf("vision head size %d is not a multiple of 4", config.HeadDim())
	}
	if side := config.PatchSize * config.MergeSize; config.WindowSize%side != 0 {
		c.failf("vision_config.window_size %d is not a multiple of patch_size * spatial_merge_size = %d",
			config.WindowSize, side)
	}
	if config.Depth > 4096 {
		c.failf("vision_config.depth is %d, want at most 4096", config.Depth)
		return config
	}
	if v.FullAttention == nil {
		c.failf("vision_config.fullatt_block_indexes is missing")
	}
	config.FullAttention = make([]bool, config.Depth)
	for _, i := range v.FullAttention {
		if i < 0 || i >= config.Depth {
			c.failf("vision_config.fullatt_block_indexes holds %d, but depth is %d", i, config.Depth)
			continue
		}
		config.FullAttention[i] = true
	}
	return config
}

func (c *check) token(name string, id, vocabulary int) {
	if id < 0 || id >= vocabulary {
		c.failf("%s is %d, outside the vocabulary of %d", name, id, vocabulary)
	}
}

// eos reads eos_token_id: a number, a list of numbers, or nothing.
func (c *check) eos(raw json.RawMessage) []int {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	var many []int
	if err := json.Unmarshal(raw, &many); err == nil {
		slices.Sort(many)
		return slices.Compact(many)
	}
	var one int
	if err := json.Unmarshal(raw, &one); err != nil {
		c.failf("eos_token_id is %s, want a number or a list of numbers", raw)
		return nil
	}
	return []int{one}
}

func firstNonEmpty(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
