package internvl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// move says where a tensor of the original goes.
type move struct {
	from  string
	shape []int    // of the original
	to    []string // one name, or three among which the rows are dealt evenly
}

// moves lists what becomes of every tensor of the original layout. The names
// are those of the published files of either layout; transformers' own names in
// memory are others.
func (c original) moves() []move {
	v, l, w := c.Vision, c.Language, c.Vision.Hidden*c.fold()*c.fold()
	var m moveList
	m.add("vision_model.embeddings.class_embedding", "vision_tower.embeddings.cls_token", 1, 1, v.Hidden)
	m.add("vision_model.embeddings.position_embedding", "vision_tower.embeddings.position_embeddings", 1, c.side()*c.side()+1, v.Hidden)
	m.add("vision_model.embeddings.patch_embedding.weight", "vision_tower.embeddings.patch_embeddings.projection.weight", v.Hidden, 3, v.Patch, v.Patch)
	m.add("vision_model.embeddings.patch_embedding.bias", "vision_tower.embeddings.patch_embeddings.projection.bias", v.Hidden)
	for i := range v.Layers {
		m.block(v, fmt.Sprintf("vision_model.encoder.layers.%d.", i), fmt.Sprintf("vision_tower.encoder.layer.%d.", i))
	}
	m.linear("mlp1.0", "multi_modal_projector.layer_norm", w)
	m.linear("mlp1.1", "multi_modal_projector.linear_1", l.Hidden, w)
	m.linear("mlp1.3", "multi_modal_projector.linear_2", l.Hidden, l.Hidden)
	m.keep("language_model.model.embed_tokens.weight", l.Vocab, l.Hidden)
	for i := range l.Layers {
		m.layer(l, fmt.Sprintf("language_model.model.layers.%d.", i))
	}
	m.keep("language_model.model.norm.weight", l.Hidden)
	if !l.Tied {
		m.keep("language_model.lm_head.weight", l.Vocab, l.Hidden)
	}
	return m
}

type moveList []move

func (m *moveList) add(from, to string, shape ...int) {
	*m = append(*m, move{from, shape, []string{to}})
}

func (m *moveList) keep(name string, shape ...int) { m.add(name, name, shape...) }

// linear adds a weight and a bias of its first dimension.
func (m *moveList) linear(from, to string, shape ...int) {
	m.add(from+".weight", to+".weight", shape...)
	m.add(from+".bias", to+".bias", shape[0])
}

// fused adds a tensor whose rows are those of queries, keys and values.
func (m *moveList) fused(from, prefix, suffix string, shape ...int) {
	var to []string
	for _, part := range []string{"q_proj", "k_proj", "v_proj"} {
		to = append(to, prefix+part+suffix)
	}
	*m = append(*m, move{from, shape, to})
}

// block adds one block of the vision tower.
func (m *moveList) block(v vision, from, to string) {
	m.fused(from+"attn.qkv.weight", to+"attention.", ".weight", 3*v.Hidden, v.Hidden)
	if *v.QKVBias {
		m.fused(from+"attn.qkv.bias", to+"attention.", ".bias", 3*v.Hidden)
	}
	m.linear(from+"attn.proj", to+"attention.projection_layer", v.Hidden, v.Hidden)
	m.add(from+"ls1", to+"lambda_1", v.Hidden)
	m.add(from+"ls2", to+"lambda_2", v.Hidden)
	m.linear(from+"norm1", to+"layernorm_before", v.Hidden)
	m.linear(from+"norm2", to+"layernorm_after", v.Hidden)
	m.linear(from+"mlp.fc1", to+"mlp.fc1", v.MLP, v.Hidden)
	m.linear(from+"mlp.fc2", to+"mlp.fc2", v.Hidden, v.MLP)
}

// layer adds one layer of the language model, whose names stay.
func (m *moveList) layer(l language, at string) {
	keys := l.Hidden / l.Heads * l.KVHeads
	m.keep(at+"input_layernorm.weight", l.Hidden)
	m.keep(at+"post_attention_layernorm.weight", l.Hidden)
	m.linear(at+"self_attn.q_proj", at+"self_attn.q_proj", l.Hidden, l.Hidden)
	m.linear(at+"self_attn.k_proj", at+"self_attn.k_proj", keys, l.Hidden)
	m.linear(at+"self_attn.v_proj", at+"self_attn.v_proj", keys, l.Hidden)
	m.keep(at+"self_attn.o_proj.weight", l.Hidden, l.Hidden)
	m.keep(at+"mlp.gate_proj.weight", l.MLP, l.Hidden)
	m.keep(at+"mlp.up_proj.weight", l.MLP, l.Hidden)
	m.keep(at+"mlp.down_proj.weight", l.Hidden, l.MLP)
}

// maxNamed is how many bad tensors of a kind an error names.
const maxNamed = 8

// checkTensors compares what the checkpoint holds with what moves ask for.
func checkTensors(model *checkpoint.Model, moves []move) error {
	asked := map[string]bool{}
	var missing, extra, shapes, types []string
	for _, m := range moves {
		asked[m.from] = true
		dtype, shape, ok := model.Info(m.from)
		switch {
		case !ok:
			missing = append(missing, m.from)
		case !slices.Equal(shape, m.shape):
			shapes = append(shapes, fmt.Sprintf("%s %v, want %v", m.from, shape, m.shape))
		case dtype != safetensors.F32 && dtype != safetensors.BF16 && dtype != safetensors.F16:
			types = append(types, fmt.Sprintf("%s %s", m.from, dtype))
		}
	}
	for _, name := range model.Names() {
		if !asked[name] {
			extra = append(extra, name)
		}
	}
	err := errors.Join(named("missing", missing), named("unexpected", extra), named("of another shape", shapes),
		named("of a type that is not F32, BF16 or F16", types))
	if err != nil {
		return fmt.Errorf("%s: %w:\n%w", model.Dir(), ErrTensors, err)
	}
	return nil
}

// named lists the first of some tensors; nil if there are none.
func named(what string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	sort.Strings(names)
	text := ""
	for _, name := range names[:min(len(names), maxNamed)] {
		text += "\n  " + name
	}
	if more := len(names) - maxNamed; more > 0 {
		text += fmt.Sprintf("\n  and %d more", more)
	}
	return fmt.Errorf("%s:%s", what, text)
}

// reader reads tensors of the original while the target is written.
type reader struct {
	ctx         context.Context //nolint:containedctx // one reader serves one call
	model       *checkpoint.Model
	progress    func(done, total int64)
	done, total int64 // bytes
}

// lazily lists the tensors of the target, and counts their bytes.
func (r *reader) lazily(moves []move) map[string]safetensors.Lazy {
	out := map[string]safetensors.Lazy{}
	for _, m := range moves {
		dtype, _, _ := r.model.Info(m.from)
		r.total += int64(safetensors.Tensor{Shape: m.shape}.Len() * dtype.Size())
		shape := slices.Clone(m.shape)
		shape[0] /= len(m.to)
		for i, name := range m.to {
			out[name] = safetensors.Lazy{DType: dtype, Shape: shape, Read: func() ([]byte, error) { return r.part(m, i) }}
		}
	}
	return out
}

// part reads the i-th of the parts into which m cuts its tensor.
func (r *reader) part(m move, i int) ([]byte, error) {
	if err := r.ctx.Err(); err != nil {
		return nil, err
	}
	t, err := r.model.Tensor(m.from)
	if err != nil {
		return nil, err
	}
	size := len(t.Data) / len(m.to) // rows are contiguous
	r.done += int64(size)
	if r.progress != nil {
		r.progress(r.done, r.total)
	}
	return t.Data[i*size : (i+1)*size], nil
}
