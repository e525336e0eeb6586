package micro

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// embeddingStd is the spread of the embeddings, which with tied embeddings is
// that of the output matrix too.
const embeddingStd = 0.3

// tensors draws all weights: matrices with standard deviation 1/sqrt(fan-in),
// so that signals keep their size through every layer (with the usual 0.02 the
// images of a model of this width are never used), norms 1, biases 0.
func (o Options) tensors(vocab int) (map[string]safetensors.Tensor, error) {
	all := map[string]safetensors.Tensor{}
	var err error
	add := func(name string, std, mean float64, shape ...int) {
		if err != nil {
			return
		}
		var t safetensors.Tensor
		if t, err = checkpoint.FromFloat32(o.DType, o.draw(name, std, mean, shape), shape...); err == nil {
			all[name] = t
		}
	}
	matrix := func(name string, out, in int) { add(name+".weight", 1/math.Sqrt(float64(in)), 0, out, in) }
	linear := func(name string, out, in int) {
		matrix(name, out, in)
		add(name+".bias", 0, 0, out)
	}
	norm := func(name string, n int) { add(name+".weight", 0, 1, n) }

	h, head := o.Hidden, o.Hidden/o.Heads
	add("model.embed_tokens.weight", embeddingStd, 0, vocab, h)
	for i := range o.Layers {
		p := fmt.Sprintf("model.layers.%d.", i)
		norm(p+"input_layernorm", h)
		linear(p+"self_attn.q_proj", o.Heads*head, h)
		linear(p+"self_attn.k_proj", o.KVHeads*head, h)
		linear(p+"self_attn.v_proj", o.KVHeads*head, h)
		matrix(p+"self_attn.o_proj", h, o.Heads*head)
		norm(p+"post_attention_layernorm", h)
		matrix(p+"mlp.gate_proj", o.MLP, h)
		matrix(p+"mlp.up_proj", o.MLP, h)
		matrix(p+"mlp.down_proj", h, o.MLP)
	}
	norm("model.norm", h)
	if o.Untied {
		matrix("lm_head", vocab, h)
	}

	v := o.VisionHidden
	pixels := 3 * temporalPatchSize * patchSize * patchSize
	add("visual.patch_embed.proj.weight", 1/math.Sqrt(float64(pixels)), 0, v, 3, temporalPatchSize, patchSize, patchSize)
	for i := range o.VisionDepth {
		p := fmt.Sprintf("visual.blocks.%d.", i)
		norm(p+"norm1", v)
		linear(p+"attn.qkv", 3*v, v)
		linear(p+"attn.proj", v, v)
		norm(p+"norm2", v)
		linear(p+"mlp.gate_proj", o.VisionMLP, v)
		linear(p+"mlp.up_proj", o.VisionMLP, v)
		linear(p+"mlp.down_proj", v, o.VisionMLP)
	}
	merged := v * mergeSize * mergeSize
	norm("visual.merger.ln_q", v)
	linear("visual.merger.mlp.0", merged, merged)
	linear("visual.merger.mlp.2", h, merged)
	return all, err
}

// draw makes one tensor of normal numbers. Each has a stream of its own, named
// by seed and tensor, so that its values do not depend on the other tensors.
func (o Options) draw(name string, std, mean float64, shape []int) []float32 {
	n := 1
	for _, d := range shape {
		n *= d
	}
	values := make([]float32, n)
	sum := sha256.Sum256(fmt.Appendf(nil, "uadt-micro-1|%d|%s", o.Seed, name))
	random := rand.New(rand.NewPCG(binary.LittleEndian.Uint64(sum[:]), binary.LittleEndian.Uint64(sum[8:])))
	for i := range values {
		values[i] = float32(mean)
		if std > 0 {
			values[i] += float32(std * random.NormFloat64())
		}
	}
	return values
}
