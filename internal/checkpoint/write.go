package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"

	"github.com/uadt-train/uadt-train/internal/durable"
	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// DefaultShard is the largest weight file that Write makes by default, in
// bytes: 5 GB, as in published checkpoints.
const DefaultShard = 5_000_000_000

// Contents is what a model directory is written from.
type Contents struct {
	// Files holds side files by name (config.json, tokenizer.json, ...). In an
	// existing directory, files that are not named here stay as they are.
	Files map[string][]byte
	// Tensors holds all weights by name; nil writes no weights.
	Tensors map[string]safetensors.Tensor
	// Lazy holds all weights in place of Tensors; each is read when it is written,
	// so that one is in memory at a time. Files must hold config.json then.
	Lazy map[string]safetensors.Lazy
	// ShardBytes is the largest weight file in bytes; 0 is DefaultShard. A single
	// larger tensor has a file of its own.
	ShardBytes int64
}

// Write writes a model directory and returns the digest of its tensors ("" when
// there are none). A directory that does not exist appears whole, by renaming,
// or not at all. In one that exists every file is replaced by renaming, side
// files first, the weights (and their index) last, and weight files of an
// earlier layout are removed after that; so a single-file checkpoint is always
// whole. Everything is synced to disk before Write returns.
func Write(dir string, c Contents) (digest string, err error) {
	for name := range c.Files {
		if name != filepath.Base(name) || !filepath.IsLocal(name) || name == "." || isWeights(name) {
			return "", fmt.Errorf("checkpoint %s: %q cannot be a side file", dir, name)
		}
	}
	dir = filepath.Clean(dir)
	if info, err := os.Stat(dir); err == nil {
		if !info.IsDir() {
			return "", fmt.Errorf("checkpoint: %s is a file, want a directory", dir)
		}
		return fill(dir, c)
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("checkpoint: %w", err)
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", fmt.Errorf("checkpoint: %w", err)
	}
	temp, err := os.MkdirTemp(parent, "."+filepath.Base(dir)+".*")
	if err != nil {
		return "", fmt.Errorf("checkpoint: %w", err)
	}
	defer func() {
		if err != nil {
			digest, err = "", errors.Join(err, os.RemoveAll(temp))
		}
	}()
	if err := os.Chmod(temp, 0o755); err != nil {
		return "", fmt.Errorf("checkpoint: %w", err)
	}
	if digest, err = fill(temp, c); err != nil {
		return "", err
	}
	if err := os.Rename(temp, dir); err != nil {
		return "", fmt.Errorf("checkpoint: %w", err)
	}
	return digest, durable.SyncDir(parent)
}

// fill writes the files of c into the existing directory dir.
func fill(dir string, c Contents) (string, error) {
	names := make([]string, 0, len(c.Files))
	for name := range c.Files {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if err := durable.WriteBytes(filepath.Join(dir, name), c.Files[name]); err != nil {
			return "", fmt.Errorf("checkpoint: %w", err)
		}
	}
	if c.Lazy != nil {
		if err := writeWeights(dir, c); err != nil {
			return "", err
		}
		return digestWritten(dir)
	}
	if c.Tensors == nil {
		return "", durable.SyncDir(dir)
	}
	c.Lazy = make(map[string]safetensors.Lazy, len(c.Tensors))
	for name, t := range c.Tensors {
		c.Lazy[name] = safetensors.Lazy{DType: t.DType, Shape: t.Shape, Read: func() ([]byte, error) { return t.Data, nil }}
	}
	if err := writeWeights(dir, c); err != nil {
		return "", err
	}
	return Digest(c.Tensors), durable.SyncDir(dir)
}

// digestWritten reads the weights of dir again, which their digest needs in
// another order than they were written in.
func digestWritten(dir string) (digest string, err error) {
	model, err := Open(dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, model.Close()) }()
	if digest, err = model.Digest(); err != nil {
		return "", err
	}
	return digest, durable.SyncDir(dir)
}

// writeWeights writes the tensors as one file, or as shards and their index.
func writeWeights(dir string, c Contents) error {
	shards := split(c.Lazy, c.ShardBytes)
	kept := map[string]bool{}
	x := index{Metadata: map[string]any{}, WeightMap: map[string]string{}}
	var total int64
	for i, names := range shards {
		file := WeightsFile
		if len(shards) > 1 {
			file = fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, len(shards))
		}
		kept[file] = true
		// transformers refuses a file without this metadata.
		metadata, tensors := map[string]string{"format": "pt"}, map[string]safetensors.Lazy{}
		for _, name := range names {
			tensors[name] = c.Lazy[name]
			x.WeightMap[name] = file
			total += size(c.Lazy[name])
		}
		if err := safetensors.WriteLazyFile(filepath.Join(dir, file), metadata, tensors); err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
	}
	if len(shards) > 1 {
		x.Metadata["total_size"] = total
		text, err := json.MarshalIndent(x, "", "  ")
		if err != nil {
			return fmt.Errorf("checkpoint: encoding %s: %w", IndexFile, err)
		}
		if err := durable.WriteBytes(filepath.Join(dir, IndexFile), append(text, '\n')); err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
		kept[IndexFile] = true
	}
	return removeOthers(dir, kept)
}

// size is the number of bytes of l. A bad shape or type is refused when it is
// written.
func size(l safetensors.Lazy) int64 {
	return int64(safetensors.Tensor{Shape: l.Shape}.Len()) * int64(l.DType.Size())
}

// split deals the tensors, in sorted order, into files of at most limit bytes.
func split(tensors map[string]safetensors.Lazy, limit int64) [][]string {
	if limit <= 0 {
		limit = DefaultShard
	}
	names := make([]string, 0, len(tensors))
	for name := range tensors {
		names = append(names, name)
	}
	sort.Strings(names)
	shards, held := [][]string{nil}, int64(0)
	for _, name := range names {
		n := size(tensors[name])
		if held > 0 && held+n > limit {
			shards, held = append(shards, nil), 0
		}
		last := len(shards) - 1
		shards[last] = append(shards[last], name)
		held += n
	}
	return shards
}

var shardName = regexp.MustCompile(`^model-\d{5}-of-\d{5}\.safetensors$`)

// isWeights tells the files that hold weights from side files.
func isWeights(name string) bool {
	return name == WeightsFile || name == IndexFile || shardName.MatchString(name)
}

// removeOthers removes weight files that do not belong to the new layout.
func removeOthers(dir string, kept map[string]bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	for _, e := range entries {
		if isWeights(e.Name()) && !kept[e.Name()] {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("checkpoint: %w", err)
			}
		}
	}
	return nil
}
