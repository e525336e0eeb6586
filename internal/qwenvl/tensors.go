package qwenvl

import (
	"fmt"
	"strings"
)

// Part says which of the separately freezable parts a tensor belongs to.
type Part string

// The parts of the model.
const (
	PartVision Part = "vision" // patch embedding and blocks
	PartMerger Part = "merger" // the projector into the text model
	PartText   Part = "text"   // embedding, layers, final norm
	PartHead   Part = "head"   // lm_head, when untied
)

// TensorSpec names one tensor of a checkpoint with its shape (row-major, as in
// PyTorch: a Linear is [out, in]).
type TensorSpec struct {
	Name  string
	Shape []int
	Part  Part
}

// Names of the tensors that stand outside of blocks, as published.
const (
	NameEmbedding  = "model.embed_tokens.weight"
	NameFinalNorm  = "model.norm.weight"
	NameHead       = "lm_head.weight" // absent when tied
	NamePatchEmbed = "visual.patch_embed.proj.weight"
	NameMergerNorm = "visual.merger.ln_q.weight"
	NameMergerIn   = "visual.merger.mlp.0" // .weight and .bias
	NameMergerOut  = "visual.merger.mlp.2" // .weight and .bias
)

// LayerPrefix is the name of text layer i up to and including the dot.
func LayerPrefix(i int) string { return fmt.Sprintf("model.layers.%d.", i) }

// BlockPrefix is the name of vision block i up to and including the dot.
func BlockPrefix(i int) string { return fmt.Sprintf("visual.blocks.%d.", i) }

// CanonicalName maps the names that newer transformers write
// ("model.language_model.*", "model.visual.*") to the published ones, which
// this repository writes and vLLM reads. Other names come back unchanged.
func CanonicalName(name string) string {
	if rest, ok := strings.CutPrefix(name, "model.language_model."); ok {
		return "model." + rest
	}
	if rest, ok := strings.CutPrefix(name, "model.visual."); ok {
		return "visual." + rest
	}
	return name
}

// Tensors lists every tensor that a checkpoint of this config holds, in a
// fixed order: vision, merger, text, head.
func (c Config) Tensors() []TensorSpec {
	var specs []TensorSpec
	add := func(part Part, name string, shape ...int) {
		specs = append(specs, TensorSpec{Name: name, Shape: shape, Part: part})
	}
	linear := func(part Part, name string, out, in int, bias bool) {
		add(part, name+".weight", out, in)
		if bias {
			add(part, name+".bias", out)
		}
	}
	v := c.Vision
	add(PartVision, NamePatchEmbed, v.HiddenSize, v.InChannels, v.TemporalPatchSize, v.PatchSize, v.PatchSize)
	for i := range v.Depth {
		p := BlockPrefix(i)
		add(PartVision, p+"norm1.weight", v.HiddenSize)
		add(PartVision, p+"norm2.weight", v.HiddenSize)
		linear(PartVision, p+"attn.qkv", 3*v.HiddenSize, v.HiddenSize, true)
		linear(PartVision, p+"attn.proj", v.HiddenSize, v.HiddenSize, true)
		linear(PartVision, p+"mlp.gate_proj", v.IntermediateSize, v.HiddenSize, true)
		linear(PartVision, p+"mlp.up_proj", v.IntermediateSize, v.HiddenSize, true)
		linear(PartVision, p+"mlp.down_proj", v.HiddenSize, v.IntermediateSize, true)
	}
	add(PartMerger, NameMergerNorm, v.HiddenSize)
	linear(PartMerger, NameMergerIn, v.MergedDim(), v.MergedDim(), true)
	linear(PartMerger, NameMergerOut, v.OutHiddenSize, v.MergedDim(), true)

	add(PartText, NameEmbedding, c.VocabSize, c.HiddenSize)
	for i := range c.Layers {
		p := LayerPrefix(i)
		add(PartText, p+"input_layernorm.weight", c.HiddenSize)
		add(PartText, p+"post_attention_layernorm.weight", c.HiddenSize)
		linear(PartText, p+"self_attn.q_proj", c.Heads*c.HeadDim, c.HiddenSize, true)
		linear(PartText, p+"self_attn.k_proj", c.KVHeads*c.HeadDim, c.HiddenSize, true)
		linear(PartText, p+"self_attn.v_proj", c.KVHeads*c.HeadDim, c.HiddenSize, true)
		linear(PartText, p+"self_attn.o_proj", c.HiddenSize, c.Heads*c.HeadDim, false)
		linear(PartText, p+"mlp.gate_proj", c.IntermediateSize, c.HiddenSize, false)
		linear(PartText, p+"mlp.up_proj", c.IntermediateSize, c.HiddenSize, false)
		linear(PartText, p+"mlp.down_proj", c.HiddenSize, c.IntermediateSize, false)
	}
	add(PartText, NameFinalNorm, c.HiddenSize)
	if !c.TieEmbeddings {
		add(PartHead, NameHead, c.VocabSize, c.HiddenSize)
	}
	return specs
}
