// Package micro writes fresh micro checkpoints: complete Hugging Face
// directories of a small Qwen2_5_VLForConditionalGeneration, with a vocabulary
// learnt from a corpus and random weights, that open unchanged in transformers,
// in vLLM and in the native engine.
//
// It trains no weights and loads no model.
package micro

import (
	"errors"
	"fmt"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

// Options says what model to write. Zero fields take the default.
type Options struct {
	Hidden  int // text width; default 64; must be Heads * head size, head size 32, 48, 64, 80, ...
	Layers  int // text layers; default 2
	Heads   int // query heads; default 2
	KVHeads int // key and value heads; default 1; divides Heads
	MLP     int // width of the text MLP; default 192
	// MropeSections are the rotary frequencies of time, height and width; their
	// sum is half the head size. Default: a quarter, then three eighths each
	// (4, 6, 6 for head size 32).
	MropeSections []int

	VisionHidden int // vision width; default 64
	VisionDepth  int // vision blocks, the last with full attention; default 2
	VisionHeads  int // default 4; divides VisionHidden
	VisionMLP    int // default 128

	Vocab       int // most tokens, at least tokenizer.MinVocab; default 512
	MaxPosition int // longest prompt and response, tokens; default 2048
	MinPixels   int // of an image after resizing; default 4 * 28 * 28
	MaxPixels   int // default 16 * 28 * 28

	Untied bool              // an output matrix of its own instead of the embedding
	DType  safetensors.DType // F32 (default) or BF16
	Seed   uint64            // of the weights; every value is valid
	// Corpus is what the vocabulary is learnt from. Words that are frequent in it
	// become single tokens.
	Corpus []string
}

// fill replaces zero fields by defaults.
func (o Options) fill() Options {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.Hidden, 64)
	def(&o.Layers, 2)
	def(&o.Heads, 2)
	def(&o.KVHeads, 1)
	def(&o.MLP, 192)
	def(&o.VisionHidden, 64)
	def(&o.VisionDepth, 2)
	def(&o.VisionHeads, 4)
	def(&o.VisionMLP, 128)
	def(&o.Vocab, 512)
	def(&o.MaxPosition, 2048)
	def(&o.MinPixels, 4*28*28)
	def(&o.MaxPixels, 16*28*28)
	if o.DType == "" {
		o.DType = safetensors.F32
	}
	if len(o.MropeSections) == 0 && o.Heads > 0 {
		half := o.Hidden / o.Heads / 2
		side := half * 3 / 8
		o.MropeSections = []int{half - 2*side, side, side}
	}
	return o
}

// Validate reports at once every option, or default in its place, that Init would
// refuse.
func (o Options) Validate() error { return o.fill().validate() }

// validate reports all that is wrong with filled options at once. The head sizes
// are those that vLLM's CPU attention accepts.
func (o Options) validate() error {
	var errs []error
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf("micro: "+format, args...))
		}
	}
	for _, f := range []struct {
		name string
		v    int
	}{{"hidden", o.Hidden}, {"layers", o.Layers}, {"heads", o.Heads}, {"kv heads", o.KVHeads}, {"mlp", o.MLP},
		{"vision hidden", o.VisionHidden}, {"vision depth", o.VisionDepth}, {"vision heads", o.VisionHeads},
		{"vision mlp", o.VisionMLP}, {"max position", o.MaxPosition}, {"min pixels", o.MinPixels}, {"max pixels", o.MaxPixels}} {
		bad(f.v < 1 || f.v > 1<<24, "%s is %d, want 1 to 2^24", f.name, f.v)
	}
	if errs != nil {
		return errors.Join(errs...)
	}
	head := o.Hidden / o.Heads
	bad(o.Hidden%o.Heads != 0, "hidden %d is no multiple of %d heads", o.Hidden, o.Heads)
	bad(o.Heads%o.KVHeads != 0, "%d heads are no multiple of %d kv heads", o.Heads, o.KVHeads)
	bad(head < 32 || head%16 != 0, "head size is %d, want 32 or more in steps of 16", head)
	sum := 0
	for _, s := range o.MropeSections {
		bad(s < 0, "mrope section %d is negative", s)
		sum += s
	}
	bad(len(o.MropeSections) != 3 || sum != head/2, "mrope sections %v must be 3 with sum %d (half the head size)", o.MropeSections, head/2)
	bad(o.VisionHidden%o.VisionHeads != 0, "vision hidden %d is no multiple of %d vision heads", o.VisionHidden, o.VisionHeads)
	bad(o.VisionHidden/o.VisionHeads%4 != 0, "vision head size is %d, want a multiple of 4", o.VisionHidden/o.VisionHeads)
	bad(o.Vocab < tokenizer.MinVocab(), "vocabulary is %d, want at least %d", o.Vocab, tokenizer.MinVocab())
	bad(o.MinPixels > o.MaxPixels, "min pixels %d are above max pixels %d", o.MinPixels, o.MaxPixels)
	bad(o.DType != safetensors.F32 && o.DType != safetensors.BF16, "element type is %q, want F32 or BF16", o.DType)
	return errors.Join(errs...)
}

// Init writes the model directory dir and returns the digest of its weights. A
// directory that does not exist appears whole or not at all; into an empty one
// the weights are written last. The same options give the same bytes. The vocabulary
// may come out smaller than Options.Vocab when the corpus has no more to learn.
// dir must not exist yet or be an empty directory.
func Init(dir string, o Options) (digest string, err error) {
	o = o.fill()
	if err := o.validate(); err != nil {
		return "", err
	}
	if err := mustBeFree(dir); err != nil {
		return "", err
	}
	tok, err := tokenizer.Train(o.Corpus, o.Vocab)
	if err != nil {
		return "", fmt.Errorf("micro: %w", err)
	}
	files, err := tok.Files(o.MaxPosition)
	if err != nil {
		return "", fmt.Errorf("micro: %w", err)
	}
	if err := o.addConfigs(files, tok); err != nil {
		return "", err
	}
	tensors, err := o.tensors(tok.Size())
	if err != nil {
		return "", err
	}
	digest, err = checkpoint.Write(dir, checkpoint.Contents{Files: files, Tensors: tensors})
	if err != nil {
		return "", fmt.Errorf("micro: %w", err)
	}
	return digest, nil
}
