package qwenvl

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Image is one preprocessed image of a prompt.
type Image struct {
	// Digest identifies the pixels (and the preprocessing) for the cache of
	// image features: equal digests must mean equal patches.
	Digest [sha256.Size]byte
	// Grid is the size in patches.
	Grid Grid
	// Patches is [Grid.Patches()][PatchDim]. The engine keeps a reference until
	// the request ends and does not change it.
	Patches []float32
}

// Request asks for Choices traces of one prompt.
type Request struct {
	// Prompt holds the token ids after image expansion.
	Prompt []int32
	// Images stand, in order, at the runs of image tokens in Prompt.
	Images []Image
	// Choices is the number of traces; 0 means 1.
	Choices int
	// Sampling is how they are drawn.
	Sampling Sampling
	// Salt separates prefix caches: prompts with different salts share nothing.
	Salt string
	// Watch, if set, is called after every new token of choice i, from the
	// engine's goroutine, so it must return quickly and must not call the
	// engine. c is the choice so far, with Finish set if this token ended it;
	// returning true ends it with "stop".
	Watch func(i int, c *Choice) (stop bool)
}

// Finish says why a trace ended.
type Finish string

// The ways a trace ends, by their names in vLLM's responses.
const (
	FinishStop   Finish = "stop"   // an end or stop token, or Watch said so
	FinishLength Finish = "length" // MaxTokens, or the model's length
	FinishAbort  Finish = "abort"  // the engine was paused with PauseAbort
)

// NoStopToken is Choice.StopToken when no stop token ended the trace.
const NoStopToken = -1

// Choice is one trace. The slices have one entry per token.
type Choice struct {
	Tokens    []int32
	LogProbs  []float32 // of the token, under the processed distribution
	Entropies []float32 // of the processed distribution, nats
	// Top holds TopPerToken candidates for each token, by falling
	// log-probability; empty unless asked for.
	Top         []TokenLogProb
	TopPerToken int
	Finish      Finish
	StopToken   int32 // the stop token that ended it; NoStopToken for the primary end token
}

// Result is the answer to a Request.
type Result struct {
	Choices      []Choice
	CachedTokens int // prompt tokens that came from the prefix cache
}

// check validates a request against the model and places its images.
func (r *Request) check(c Config, maxLength int) ([]ImageSpan, error) {
	if len(r.Prompt) == 0 {
		return nil, fmt.Errorf("%w: it has no tokens", ErrPrompt)
	}
	for i, id := range r.Prompt {
		if id < 0 || int(id) >= c.VocabSize {
			return nil, fmt.Errorf("%w: token %d at position %d is outside the vocabulary of %d", ErrPrompt, id, i, c.VocabSize)
		}
	}
	if len(r.Prompt) >= maxLength {
		return nil, fmt.Errorf("%w: %d tokens leave no room in a length of %d", ErrPrompt, len(r.Prompt), maxLength)
	}
	if r.Choices < 0 {
		return nil, fmt.Errorf("%w: %d choices", ErrSampling, r.Choices)
	}
	if err := r.Sampling.Validate(c.VocabSize); err != nil {
		return nil, err
	}
	grids := make([]Grid, len(r.Images))
	for i, image := range r.Images {
		grids[i] = image.Grid
	}
	spans, err := c.ImageSpans(r.Prompt, grids)
	if err != nil {
		return nil, err
	}
	for i, image := range r.Images {
		if want := image.Grid.Patches() * c.Vision.PatchDim(); len(image.Patches) != want {
			return nil, fmt.Errorf("%w: image %d has %d values, want %d", ErrPrompt, i, len(image.Patches), want)
		}
	}
	return spans, nil
}

// prefixKey identifies a prompt in the prefix cache.
func (r *Request) prefixKey() [sha256.Size]byte {
	h := sha256.New()
	buffer := binary.LittleEndian.AppendUint64(nil, uint64(len(r.Salt)))
	buffer = append(buffer, r.Salt...)
	for _, id := range r.Prompt {
		buffer = binary.LittleEndian.AppendUint32(buffer, uint32(id))
	}
	for _, image := range r.Images {
		buffer = append(buffer, image.Digest[:]...)
	}
	h.Write(buffer)
	return [sha256.Size]byte(h.Sum(nil))
}
