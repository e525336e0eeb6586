package qwenvl

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/qwenvl/kernel"
)

// ErrWeights is wrapped by every error about tensors that do not make up the
// model that the config describes.
var ErrWeights = errors.New("unusable weights")

// Source is where tensors come from: checkpoint.Model, or a map in memory.
type Source interface {
	// Names lists all tensors.
	Names() []string
	// Float32 reads one tensor, row-major, and fails when its shape differs.
	Float32(name string, shape ...int) ([]float32, error)
}

// Model is one set of weights, packed for the engine. It is immutable and may
// be shared by any number of engines.
type Model struct {
	Config Config
	// Digest is that of the tensors as they are stored (checkpoint.Digest); ""
	// when they did not come from a directory.
	Digest string

	embedding []float32 // [VocabSize][HiddenSize]
	layers    []textLayer
	finalNorm []float32
	head      *kernel.Matrix
	vision    visionTower
	rope      ropeTable
}

type textLayer struct {
	inNorm, postNorm []float32
	qkv              *kernel.Matrix // q heads, then k heads, then v heads
	out              *kernel.Matrix
	gate, up, down   *kernel.Matrix
}

type visionTower struct {
	patch     *kernel.Matrix
	blocks    []visionBlock
	mergeNorm []float32
	mergeIn   *kernel.Matrix
	mergeOut  *kernel.Matrix
	inverse   []float32 // rotary frequencies, head size / 4
}

type visionBlock struct {
	norm1, norm2   []float32
	qkv, proj      *kernel.Matrix
	gate, up, down *kernel.Matrix
	full           bool
}

// LoadModel opens a checkpoint directory and packs its weights. Every tensor of
// the config must be there with its shape and finite, and no other (a stored
// head of a tied model is ignored). The digest is computed meanwhile.
func LoadModel(dir string) (model *Model, err error) {
	files, err := checkpoint.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, files.Close()) }()
	config, err := ParseConfig(files.Config())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	digest := make(chan error, 1)
	go func() { _, err := files.Digest(); digest <- err }()
	model, err = NewModel(config, files)
	if err = errors.Join(err, <-digest); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	model.Digest, err = files.Digest() // kept from above
	return model, err
}

// NewModel packs the weights of a source.
func NewModel(config Config, source Source) (*Model, error) {
	values, err := readTensors(config, source)
	if err != nil {
		return nil, err
	}
	m := &Model{Config: config, rope: newRopeTable(config)}
	pack := func(name string, out, in int) *kernel.Matrix {
		return kernel.Pack(values[name+".weight"], values[name+".bias"], out, in)
	}
	h, attention := config.HiddenSize, config.Heads*config.HeadDim
	m.embedding = values[NameEmbedding]
	for i := range config.Layers {
		p := LayerPrefix(i)
		m.layers = append(m.layers, textLayer{
			inNorm:   values[p+"input_layernorm.weight"],
			postNorm: values[p+"post_attention_layernorm.weight"],
			qkv:      packTogether(values, h, p+"self_attn.q_proj", p+"self_attn.k_proj", p+"self_attn.v_proj"),
			out:      pack(p+"self_attn.o_proj", h, attention),
			gate:     pack(p+"mlp.gate_proj", config.IntermediateSize, h),
			up:       pack(p+"mlp.up_proj", config.IntermediateSize, h),
			down:     pack(p+"mlp.down_proj", h, config.IntermediateSize),
		})
	}
	m.finalNorm = values[NameFinalNorm]
	head := values[NameHead]
	if config.TieEmbeddings {
		head = m.embedding
	}
	m.head = kernel.Pack(head, nil, config.VocabSize, h)

	v := config.Vision
	m.vision = visionTower{
		patch:     kernel.Pack(values[NamePatchEmbed], nil, v.HiddenSize, v.PatchDim()),
		mergeNorm: values[NameMergerNorm],
		mergeIn:   pack(NameMergerIn, v.MergedDim(), v.MergedDim()),
		mergeOut:  pack(NameMergerOut, v.OutHiddenSize, v.MergedDim()),
		inverse:   inverseFrequencies(v.HeadDim()/2, 10000),
	}
	for i := range v.Depth {
		p := BlockPrefix(i)
		m.vision.blocks = append(m.vision.blocks, visionBlock{
			norm1: values[p+"norm1.weight"], norm2: values[p+"norm2.weight"],
			qkv:  pack(p+"attn.qkv", 3*v.HiddenSize, v.HiddenSize),
			proj: pack(p+"attn.proj", v.HiddenSize, v.HiddenSize),
			gate: pack(p+"mlp.gate_proj", v.IntermediateSize, v.HiddenSize),
			up:   pack(p+"mlp.up_proj", v.IntermediateSize, v.HiddenSize),
			down: pack(p+"mlp.down_proj", v.HiddenSize, v.IntermediateSize),
			full: v.FullAttention[i],
		})
	}
	return m, nil
}

// packTogether packs several linears that read the same input side by side.
func packTogether(values map[string][]float32, in int, names ...string) *kernel.Matrix {
	var weight, bias []float32
	for _, name := range names {
		weight = append(weight, values[name+".weight"]...)
		bias = append(bias, values[name+".bias"]...)
	}
	return kernel.Pack(weight, bias, len(bias), in)
}

// readTensors reads every tensor of the config by its canonical name and
// reports all that are missing, mis-shaped, not finite or unknown.
func readTensors(config Config, source Source) (map[string][]float32, error) {
	stored := map[string]string{}
	for _, name := range source.Names() {
		stored[CanonicalName(name)] = name
	}
	values := map[string][]float32{}
	var problems []error
	for _, spec := range config.Tensors() {
		name, ok := stored[spec.Name]
		if !ok {
			problems = append(problems, fmt.Errorf("%w: tensor %s is missing", ErrWeights, spec.Name))
			continue
		}
		delete(stored, spec.Name)
		data, err := source.Float32(name, spec.Shape...)
		if err != nil {
			problems = append(problems, fmt.Errorf("%w: %w", ErrWeights, err))
			continue
		}
		if i := slices.IndexFunc(data, notFinite); i >= 0 {
			problems = append(problems, fmt.Errorf("%w: tensor %s holds %v at element %d", ErrWeights, name, data[i], i))
		}
		values[spec.Name] = data
	}
	if config.TieEmbeddings {
		delete(stored, NameHead)
	}
	for _, name := range stored {
		problems = append(problems, fmt.Errorf("%w: tensor %s is not part of the configured model", ErrWeights, name))
	}
	if len(problems) > 0 {
		slices.SortFunc(problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return nil, errors.Join(problems[:min(len(problems), 10)]...)
	}
	return values, nil
}

func notFinite(x float32) bool {
	return math.IsNaN(float64(x)) || math.IsInf(float64(x), 0)
}
