package internvl

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
)

// Options says what to import.
type Options struct {
	Source string // directory of the original layout
	Target string // directory to write; must not exist
	// Progress is told how many bytes of weights have been read, and how many there
	// are, after every tensor; nil tells nobody.
	Progress func(done, total int64)
	// ShardBytes is the largest weight file; 0 is checkpoint.DefaultShard.
	ShardBytes int64
}

// Result says what was written.
type Result struct {
	Digest    string // of the weights, as checkpoint.Digest defines it
	Tensors   int    // in the target
	Fused     int    // tensors of the original that were cut into three
	Bytes     int64  // of weights
	Vocab     int    // rows of the embedding
	TileSide  int    // pixels of a tile's side
	TileToken int    // tokens of a tile
	MaxTiles  int    // of an image, its thumbnail not counted
	// MadeTokenizer says that there was no tokenizer.json, and that the one of the
	// target was made from vocab.json and merges.txt.
	MadeTokenizer bool
}

// Import converts the directory o.Source. Everything is checked before the
// first byte is written; the target appears whole, by renaming, or not at all.
// One tensor is in memory at a time. Errors wrap ErrUnsupported, ErrTensors,
// ErrExists, ctx's error, or say what could not be read or written.
func Import(ctx context.Context, o Options) (result Result, err error) {
	if _, err := os.Lstat(o.Target); err == nil {
		return result, fmt.Errorf("%s: %w", o.Target, ErrExists)
	} else if !errors.Is(err, os.ErrNotExist) {
		return result, err
	}
	model, err := checkpoint.Open(o.Source)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, model.Close()) }()
	config, err := parseConfig(model.Config())
	if err != nil {
		return result, fmt.Errorf("%s: %w", o.Source, err)
	}
	moves := config.moves()
	if err := checkTensors(model, moves); err != nil {
		return result, err
	}
	words, err := readWords(model, config.Language.Vocab)
	if err != nil {
		return result, err
	}
	dtype, _, _ := model.Info("language_model.model.embed_tokens.weight")
	files, err := config.files(words, dtype)
	if err != nil {
		return result, err
	}
	r := reader{ctx: ctx, model: model, progress: o.Progress}
	tensors := r.lazily(moves)
	result = config.result(words, moves)
	result.Tensors, result.Bytes = len(tensors), r.total
	result.Digest, err = checkpoint.Write(o.Target, checkpoint.Contents{Files: files, Lazy: tensors, ShardBytes: o.ShardBytes})
	return result, err
}

// result is what is known before anything is written.
func (c original) result(w words, moves []move) Result {
	r := Result{Vocab: c.Language.Vocab, TileSide: c.Vision.Image, TileToken: c.tileTokens(), MaxTiles: c.maxTiles(), MadeTokenizer: w.made}
	for _, m := range moves {
		if len(m.to) > 1 {
			r.Fused++
		}
	}
	return r
}
