package graph

import (
	"errors"
	"fmt"

	"github.com/uadt-train/uadt-train/trainer"
)

// Options configures a Trainer.
type Options struct {
	// WorkDir is where published policies are written, below "policies". It is
	// made if it is missing. Required.
	WorkDir string
	// Images is where the bytes of images come from; nil is for text only.
	Images Images
	// MaxPixels is the pixel budget of an image; 0 (default) is that of the
	// checkpoint's preprocessor_config.json.
	MaxPixels int
	// Lanes is the number of goroutines that compute; default 2. It fixes the
	// order in which gradients are added, so a run keeps its number: other
	// numbers give other last bits.
	Lanes int
	// ChunkRows is about how many token rows a graph run holds; default 512.
	// Memory grows with it. As with Lanes, another number gives other last bits.
	ChunkRows int
	// ImageCacheBytes bounds the preprocessed images that are kept between
	// batches; default 64 MiB.
	ImageCacheBytes int
}

// prepare fills in defaults and reports everything that is wrong at once.
func (o Options) prepare() (Options, error) {
	var errs []error
	if o.WorkDir == "" {
		errs = append(errs, errors.New("WorkDir is empty"))
	}
	count := func(name string, v *int, fallback, limit int) {
		if *v == 0 {
			*v = fallback
		}
		if *v < 1 || *v > limit {
			errs = append(errs, fmt.Errorf("%s is %d, want 1 to %d", name, *v, limit))
		}
	}
	count("Lanes", &o.Lanes, 2, 256)
	count("ChunkRows", &o.ChunkRows, 512, 1<<20)
	count("ImageCacheBytes", &o.ImageCacheBytes, 64<<20, 1<<40)
	if o.MaxPixels < 0 {
		errs = append(errs, fmt.Errorf("MaxPixels is %d, want at least 0", o.MaxPixels))
	}
	if err := errors.Join(errs...); err != nil {
		return o, fmt.Errorf("graph trainer options: %w", err)
	}
	return o, nil
}

// ErrNotBegun is returned by every call before Begin has succeeded.
var ErrNotBegun = errors.New("no stage has begun")

// ErrClosed is returned by every call after Close.
var ErrClosed = errors.New("trainer is closed")

// IncarnationError refuses a command of an older coordinator.
type IncarnationError struct{ Have, Got uint64 }

// Error implements error.
func (e *IncarnationError) Error() string {
	return fmt.Sprintf("incarnation %d is lower than %d, which this trainer serves", e.Got, e.Have)
}

var (
	_ trainer.Backend = (*Trainer)(nil)
	_ trainer.Keeper  = (*Trainer)(nil)
)
