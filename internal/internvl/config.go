package internvl

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
)

// original is the part of the original config.json that decides what the model
// computes. Pointers tell a key that is absent, whose default in the original
// code may be another than everybody's value.
type original struct {
	Architectures []string        `json:"architectures"`
	ModelType     string          `json:"model_type"`
	Downsample    float64         `json:"downsample_ratio"`
	Dynamic       bool            `json:"dynamic_image_size"`
	ForceSize     *int            `json:"force_image_size"`
	ImageFold     *int            `json:"image_fold"`
	MinTiles      int             `json:"min_dynamic_patch"`
	MaxTiles      int             `json:"max_dynamic_patch"`
	PadSquare     bool            `json:"pad2square"`
	Shuffle       string          `json:"ps_version"`
	SelectLayer   *int            `json:"select_layer"`
	Template      string          `json:"template"`
	Thumbnail     bool            `json:"use_thumbnail"`
	BackboneLoRA  int             `json:"use_backbone_lora"`
	LanguageLoRA  int             `json:"use_llm_lora"`
	Quantization  json.RawMessage `json:"quantization_config"`
	Language      language        `json:"llm_config"`
	Vision        vision          `json:"vision_config"`
}

// language is llm_config: a Qwen2Config.
type language struct {
	Architectures    []string   `json:"architectures"`
	ModelType        string     `json:"model_type"`
	Hidden           int        `json:"hidden_size"`
	Layers           int        `json:"num_hidden_layers"`
	Heads            int        `json:"num_attention_heads"`
	KVHeads          int        `json:"num_key_value_heads"`
	HeadDim          *int       `json:"head_dim"`
	MLP              int        `json:"intermediate_size"`
	Vocab            int        `json:"vocab_size"`
	MaxPosition      int        `json:"max_position_embeddings"`
	Epsilon          float64    `json:"rms_norm_eps"`
	Theta            float64    `json:"rope_theta"`
	Rope             *ropeScale `json:"rope_scaling"`
	Act              string     `json:"hidden_act"`
	AttentionDropout float64    `json:"attention_dropout"`
	Sliding          bool       `json:"use_sliding_window"`
	LayerTypes       []string   `json:"layer_types"`
	Tied             bool       `json:"tie_word_embeddings"`
	BOS              *int       `json:"bos_token_id"`
}

// ropeScale is rope_scaling. Its type has been written under two names.
type ropeScale struct {
	Type   string  `json:"type"`
	Kind   string  `json:"rope_type"`
	Factor float64 `json:"factor"`
}

func (r ropeScale) kind() string {
	if r.Kind != "" {
		return r.Kind
	}
	return r.Type
}

// vision is vision_config: an InternVisionConfig.
type vision struct {
	ModelType        string  `json:"model_type"`
	Hidden           int     `json:"hidden_size"`
	Layers           int     `json:"num_hidden_layers"`
	Heads            int     `json:"num_attention_heads"`
	MLP              int     `json:"intermediate_size"`
	Image            int     `json:"image_size"`
	Patch            int     `json:"patch_size"`
	Channels         *int    `json:"num_channels"`
	Epsilon          float64 `json:"layer_norm_eps"`
	Act              string  `json:"hidden_act"`
	Norm             string  `json:"norm_type"`
	QKNorm           *bool   `json:"qk_normalization"`
	QKVBias          *bool   `json:"qkv_bias"`
	MoE              bool    `json:"use_moe"`
	AttentionDropout float64 `json:"attention_dropout"`
	Dropout          float64 `json:"dropout"`
}

// Bounds of what a config.json may ask for, so that a hostile one cannot ask
// for endless tables.
const (
	maxLayers = 512
	maxWidth  = 1 << 20
)

// parseConfig reads an original config.json. An error wraps ErrUnsupported and
// names everything that is not supported at once.
func parseConfig(text []byte) (original, error) {
	var c original
	if err := json.Unmarshal(text, &c); err != nil {
		return c, fmt.Errorf("config.json: %w", err)
	}
	if c.ModelType != "internvl_chat" {
		return c, fmt.Errorf("%w: config.json: model_type %q, want internvl_chat", ErrUnsupported, c.ModelType)
	}
	var p problems
	c.check(&p)
	c.Language.check(&p)
	c.Vision.check(&p)
	if len(p) == 0 {
		c.checkTiles(&p)
	}
	if len(p) > 0 {
		return c, fmt.Errorf("%w: config.json:\n%w", ErrUnsupported, errors.Join(p...))
	}
	return c, nil
}

// problems collects what is wrong.
type problems []error

// want notes a problem unless ok.
func (p *problems) want(ok bool, format string, args ...any) {
	if !ok {
		*p = append(*p, fmt.Errorf(format, args...))
	}
}

// width notes a problem unless a size is positive and bounded.
func (p *problems) width(key string, value, most int) {
	p.want(value >= 1 && value <= most, "%s: %d, want 1 to %d", key, value, most)
}

// positive notes a problem unless value is a positive number.
func (p *problems) positive(key string, value float64) {
	p.want(value > 0 && !math.IsInf(value, 0), "%s: %v, want a positive number", key, value)
}

// single tells whether names is the one name.
func single(names []string, name string) bool { return len(names) == 1 && names[0] == name }

func (c original) check(p *problems) {
	p.want(single(c.Architectures, "InternVLChatModel"), "architectures: %q, want InternVLChatModel", c.Architectures)
	p.want(c.Shuffle == "v2", "ps_version: %q, want v2 (version v1 swaps rows and columns)", c.Shuffle)
	p.want(c.SelectLayer != nil && *c.SelectLayer == -1, "select_layer: want -1, the last layer of the vision tower")
	p.want(c.Template == "internvl2_5", "template: %q, want internvl2_5 (turns between <|im_start|> and <|im_end|>)", c.Template)
	p.want(c.ImageFold == nil, "image_fold: is set")
	p.want(!c.PadSquare, "pad2square: is set")
	p.want(c.BackboneLoRA == 0, "use_backbone_lora: %d, want 0 (merge the adapter first)", c.BackboneLoRA)
	p.want(c.LanguageLoRA == 0, "use_llm_lora: %d, want 0 (merge the adapter first)", c.LanguageLoRA)
	p.want(len(c.Quantization) == 0 || string(c.Quantization) == "null", "quantization_config: is set")
	p.width("min_dynamic_patch", c.MinTiles, 1024)
	p.width("max_dynamic_patch", c.MaxTiles, 1024)
	p.want(c.MinTiles <= c.MaxTiles, "min_dynamic_patch: %d is above max_dynamic_patch, %d", c.MinTiles, c.MaxTiles)
	p.want(c.Thumbnail || !c.Dynamic || c.MaxTiles == 1, "use_thumbnail: is not set, and transformers always adds a thumbnail to several tiles")
	p.want(c.ForceSize == nil || *c.ForceSize == c.Vision.Image, "force_image_size: another than vision_config.image_size, %d", c.Vision.Image)
}

func (l language) check(p *problems) {
	if l.ModelType != "qwen2" || !single(l.Architectures, "Qwen2ForCausalLM") {
		p.want(false, "llm_config: model_type %q, architectures %q, want qwen2 and Qwen2ForCausalLM", l.ModelType, l.Architectures)
		return
	}
	p.width("llm_config.hidden_size", l.Hidden, maxWidth)
	p.width("llm_config.num_hidden_layers", l.Layers, maxLayers)
	p.width("llm_config.num_attention_heads", l.Heads, maxWidth)
	p.width("llm_config.num_key_value_heads", l.KVHeads, maxWidth)
	p.width("llm_config.intermediate_size", l.MLP, maxWidth)
	p.width("llm_config.vocab_size", l.Vocab, maxWidth)
	p.width("llm_config.max_position_embeddings", l.MaxPosition, 1<<30)
	p.positive("llm_config.rms_norm_eps", l.Epsilon)
	p.positive("llm_config.rope_theta", l.Theta)
	p.want(l.Act == "silu", "llm_config.hidden_act: %q, want silu", l.Act)
	p.want(!l.Sliding, "llm_config.use_sliding_window: is set")
	for i, kind := range l.LayerTypes {
		p.want(kind == "full_attention", "llm_config.layer_types: %q in layer %d, want full_attention", kind, i)
	}
	if l.Heads > 0 && l.KVHeads > 0 {
		p.want(l.Hidden%l.Heads == 0 && l.Heads%l.KVHeads == 0, "llm_config: %d query and %d key heads do not divide width %d", l.Heads, l.KVHeads, l.Hidden)
		p.want(l.HeadDim == nil || *l.HeadDim == l.Hidden/l.Heads, "llm_config.head_dim: another than hidden_size over num_attention_heads")
	}
	if r := l.Rope; r != nil && r.kind() != "default" {
		p.want(r.kind() == "dynamic", "llm_config.rope_scaling: %q, want dynamic or none", r.kind())
		p.positive("llm_config.rope_scaling.factor", r.Factor)
	}
}

func (v vision) check(p *problems) {
	p.want(v.ModelType == "intern_vit_6b", "vision_config.model_type: %q, want intern_vit_6b", v.ModelType)
	p.width("vision_config.hidden_size", v.Hidden, maxWidth)
	p.width("vision_config.num_hidden_layers", v.Layers, maxLayers)
	p.width("vision_config.num_attention_heads", v.Heads, maxWidth)
	p.width("vision_config.intermediate_size", v.MLP, maxWidth)
	p.width("vision_config.image_size", v.Image, 1<<14)
	p.width("vision_config.patch_size", v.Patch, 1<<14)
	p.positive("vision_config.layer_norm_eps", v.Epsilon)
	p.want(v.Channels == nil || *v.Channels == 3, "vision_config.num_channels: want 3")
	p.want(v.Act == "gelu", "vision_config.hidden_act: %q, want gelu", v.Act)
	p.want(v.Norm == "layer_norm", "vision_config.norm_type: %q, want layer_norm", v.Norm)
	p.want(v.QKNorm != nil && !*v.QKNorm, "vision_config.qk_normalization: want false (absent means true)")
	p.want(v.QKVBias != nil, "vision_config.qkv_bias: is absent")
	p.want(!v.MoE, "vision_config.use_moe: is set")
	if v.Heads > 0 {
		p.want(v.Hidden%v.Heads == 0, "vision_config: %d heads do not divide width %d", v.Heads, v.Hidden)
	}
}

// checkTiles checks that a tile is cut without rest.
func (c original) checkTiles(p *problems) {
	p.want(c.Vision.Image%c.Vision.Patch == 0, "vision_config: patches of %d do not divide tiles of %d", c.Vision.Patch, c.Vision.Image)
	k := math.Round(1 / c.Downsample)
	if !(k >= 1 && k <= 64 && 1/k == c.Downsample) {
		p.want(false, "downsample_ratio: %v, want one over a whole number", c.Downsample)
		return
	}
	p.want(c.Vision.Image/c.Vision.Patch%c.fold() == 0, "downsample_ratio: %v does not divide %d patches", c.Downsample, c.Vision.Image/c.Vision.Patch)
}

// fold is how many patches of a row become one token.
func (c original) fold() int { return int(math.Round(1 / c.Downsample)) }

// side is the patches along a tile's side.
func (c original) side() int { return c.Vision.Image / c.Vision.Patch }

// tileTokens is the number of tokens of a tile.
func (c original) tileTokens() int { return (c.side() / c.fold()) * (c.side() / c.fold()) }

// maxTiles is the most tiles of an image, its thumbnail not counted.
func (c original) maxTiles() int {
	if c.Dynamic {
		return c.MaxTiles
	}
	return 1
}
