package serve

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Options configure a Server.
type Options struct {
	// Dir is the checkpoint directory: config.json, weights, tokenizer.json,
	// chat template, preprocessor_config.json. Required.
	Dir string
	// Name is the served model name. "" means "policy".
	Name string
	// MaxModelLen bounds prompt plus response, in tokens. 0 means the model's
	// max_position_embeddings.
	MaxModelLen int
	// MaxSequences is how many traces are decoded at the same time. 0 means 512.
	MaxSequences int
	// MaxImages bounds the images of one prompt. 0 means 4.
	MaxImages int
	// MaxLogprobs bounds top_logprobs. 0 means 20; -1 means no bound.
	MaxLogprobs int
	// MaxChoices bounds n. 0 means 16384, vLLM's own bound.
	MaxChoices int
	// MaxBody bounds a request body, in bytes. 0 means 64 MiB.
	MaxBody int64
	// MaxPixels bounds the resized image, in pixels, for requests that bring no
	// max_pixels of their own. 0 means what preprocessor_config.json says.
	MaxPixels int
	// CacheBytes bounds each cache (prompts, image features, preprocessed
	// images). 0 means 64 MiB.
	CacheBytes int
	// Workers is the number of goroutines that compute. 0 means GOMAXPROCS.
	Workers int
	// Seed numbers requests that bring no seed.
	Seed int64
	// ShutdownTimeout is how long Serve waits for requests in flight when its
	// context ends. 0 means 10 s.
	ShutdownTimeout time.Duration
	// Log takes one record for each change of weights and each server error.
	// nil means none.
	Log *slog.Logger
	// Now is the clock of "created" fields. nil means time.Now.
	Now func() time.Time
}

// withDefaults fills defaults and reports every bad option at once.
func (o Options) withDefaults() (Options, error) {
	setDefault(&o.Name, "policy")
	setDefault(&o.MaxImages, 4)
	setDefault(&o.MaxLogprobs, 20)
	setDefault(&o.MaxChoices, 16384)
	setDefault(&o.MaxBody, 64<<20)
	setDefault(&o.CacheBytes, 64<<20)
	setDefault(&o.ShutdownTimeout, 10*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	var problems []error
	if o.Dir == "" {
		problems = append(problems, errors.New("checkpoint directory is missing"))
	}
	for _, field := range []struct {
		name  string
		value int64
		least int64
	}{
		{"max model len", int64(o.MaxModelLen), 0}, {"max sequences", int64(o.MaxSequences), 0},
		{"max images", int64(o.MaxImages), 0}, {"max logprobs", int64(o.MaxLogprobs), -1},
		{"max choices", int64(o.MaxChoices), 1}, {"max body", o.MaxBody, 1}, {"max pixels", int64(o.MaxPixels), 0},
		{"cache bytes", int64(o.CacheBytes), 0}, {"workers", int64(o.Workers), 0},
		{"shutdown timeout", int64(o.ShutdownTimeout), 0},
	} {
		if field.value < field.least {
			problems = append(problems, fmt.Errorf("%s is %d, want at least %d", field.name, field.value, field.least))
		}
	}
	if len(problems) > 0 {
		return o, fmt.Errorf("server options: %w", errors.Join(problems...))
	}
	return o, nil
}

func setDefault[T comparable](value *T, fallback T) {
	var zero T
	if *value == zero {
		*value = fallback
	}
}
