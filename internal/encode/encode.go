// Package encode is the native trainer.Encoder of Qwen2.5-VL: it turns the
// messages and images of a question into the prompt ids that a server would
// use, and a target text into response ids.
//
// It runs no model, decodes no pixels (an image's number of tokens follows from
// its header) and fetches nothing itself: image bytes come from an [Images].
package encode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/uadt-train/uadt-train/internal/tokenizer"
	"github.com/uadt-train/uadt-train/internal/vision"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// PreprocessorFile is the name of the image settings in a model directory.
const PreprocessorFile = "preprocessor_config.json"

// Images finds the encoded file of an image by its SHA-256 digest.
type Images interface {
	Get(ctx context.Context, digest string) ([]byte, error)
}

// Options sets up an Encoder. All fields but MaxPixels are required.
type Options struct {
	Tokenizer *tokenizer.Tokenizer
	Template  tokenizer.Template
	Vision    vision.Config
	Images    Images
}

// Encoder implements trainer.Encoder. It is safe for concurrent use if its
// Images is.
type Encoder struct {
	options  Options
	pad, end int32
}

var _ trainer.Encoder = (*Encoder)(nil)

// Open reads tokenizer, chat template and image settings of a model directory.
// maxPixels replaces the directory's pixel budget; 0 keeps it.
func Open(dir string, maxPixels int, images Images) (*Encoder, error) {
	tok, err := tokenizer.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	template, err := tokenizer.OpenTemplate(dir)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	data, err := os.ReadFile(filepath.Join(dir, PreprocessorFile))
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	config, err := vision.ParseConfig(data)
	if err != nil {
		return nil, fmt.Errorf("encode: %s: %w", dir, err)
	}
	if maxPixels > 0 {
		config.MaxPixels = maxPixels
		config.MinPixels = min(config.MinPixels, maxPixels)
	}
	return New(Options{tok, template, config, images})
}

// New makes an Encoder. It fails if the vocabulary lacks the tokens that prompts
// of Qwen2.5-VL are made of, or an option is missing.
func New(o Options) (*Encoder, error) {
	if o.Tokenizer == nil || o.Images == nil || o.Template.Name() == "" {
		return nil, errors.New("encode: tokenizer, template and images are required")
	}
	if err := o.Vision.Validate(); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	e := &Encoder{options: o}
	for _, token := range []string{tokenizer.StartOfTurn, tokenizer.EndOfTurn, tokenizer.VisionStart,
		tokenizer.VisionEnd, tokenizer.ImagePad} {
		if _, ok := o.Tokenizer.ID(token); !ok {
			return nil, fmt.Errorf("encode: the vocabulary has no token %q", token)
		}
	}
	e.pad, _ = o.Tokenizer.ID(tokenizer.ImagePad)
	e.end, _ = o.Tokenizer.ID(tokenizer.EndOfTurn)
	return e, nil
}

// Encode implements trainer.Encoder. The response ends in <|im_end|>, also when
// it is empty.
func (e *Encoder) Encode(ctx context.Context, q rollout.Question, response string) (trainer.Encoded, error) {
	prompt, err := e.Prompt(ctx, q.Messages)
	if err != nil {
		return trainer.Encoded{}, fmt.Errorf("encode: question %s: %w", q.ID, err)
	}
	return trainer.Encoded{Prompt: prompt, Response: append(e.options.Tokenizer.Encode(response), e.end)}, nil
}

// Prompt returns the ids of messages with the generation prompt, every image
// expanded to its number of tokens.
func (e *Encoder) Prompt(ctx context.Context, messages []rollout.Message) ([]int32, error) {
	var counts []int
	turns := make([]tokenizer.Message, len(messages))
	for i, m := range messages {
		turns[i].Role = m.Role
		for _, p := range m.Parts {
			turns[i].Parts = append(turns[i].Parts, tokenizer.Part{Text: p.Text, Image: p.Image != nil})
			if p.Image == nil {
				continue
			}
			n, err := e.imageTokens(ctx, *p.Image)
			if err != nil {
				return nil, fmt.Errorf("image %d (%s): %w", len(counts)+1, p.Image.Digest, err)
			}
			counts = append(counts, n)
		}
	}
	text, err := e.options.Template.Render(turns, true)
	if err != nil {
		return nil, err
	}
	return tokenizer.ExpandPads(e.options.Tokenizer.Encode(text), e.pad, counts)
}

// imageTokens is the number of tokens of one image.
func (e *Encoder) imageTokens(ctx context.Context, image rollout.Image) (int, error) {
	data, err := e.options.Images.Get(ctx, image.Digest)
	if err != nil {
		return 0, err
	}
	grid, err := vision.Measure(data, e.options.Vision)
	if err != nil {
		return 0, err
	}
	return vision.Tokens(grid, e.options.Vision.MergeSize), nil
}
