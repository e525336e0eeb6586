// Package checkpoint reads and writes Hugging Face model directories:
// config.json, generation_config.json, side files such as tokenizer.json, and
// tensors by name in model.safetensors or in shards with an index.
//
// It knows no architecture: which tensors a model needs, and what they mean, is
// their reader's business. It trains nothing, computes nothing beyond
// conversion between float32 and bfloat16, and keeps no cache of tensors.
package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"

	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// Names of the files of a model directory.
const (
	ConfigFile           = "config.json"
	GenerationConfigFile = "generation_config.json"
	WeightsFile          = "model.safetensors"
	IndexFile            = "model.safetensors.index.json"
)

// maxSideFile bounds what File reads, in bytes: the largest published
// tokenizer.json has about 30 MB.
const maxSideFile = 256 << 20

// Model is an open model directory. Its headers are in memory, its tensors are
// read on demand from files that stay open until Close: a directory that is
// replaced by renaming meanwhile does not disturb it. All methods may be called
// from several goroutines.
type Model struct {
	dir        string
	config     []byte
	generation []byte
	tensors    map[string]location
	files      []*os.File

	digestOnce sync.Once
	digest     string
	digestErr  error
}

// location is where the bytes of one tensor lie.
type location struct {
	file  *os.File
	path  string
	entry safetensors.Entry
}

// TensorError is an error about one tensor of one directory.
type TensorError struct {
	Dir  string
	Name string
	Err  error
}

// Error implements error.
func (e *TensorError) Error() string {
	return fmt.Sprintf("checkpoint %s: tensor %q: %v", e.Dir, e.Name, e.Err)
}

// Unwrap returns the cause.
func (e *TensorError) Unwrap() error { return e.Err }

// ErrMissingTensor is wrapped when a tensor that was asked for is not there.
var ErrMissingTensor = errors.New("not in the checkpoint")

// ErrShape is wrapped when a tensor has another shape than was asked for.
var ErrShape = errors.New("wrong shape")

// Open opens the model directory dir: config.json must be a JSON object, and
// the headers of all weight files must be whole and fit the length of their
// files. Shapes are checked when a tensor is read. Close it after use.
func Open(dir string) (*Model, error) {
	m := &Model{dir: dir, tensors: map[string]location{}}
	var err error
	if m.config, err = readObject(dir, ConfigFile); err != nil {
		return nil, err
	}
	m.generation, err = readObject(dir, GenerationConfigFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := m.openWeights(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// readObject reads a side file that must hold a JSON object.
func readObject(dir, name string) ([]byte, error) {
	data, err := readSide(dir, name)
	if err != nil {
		return nil, err
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(data, &object); err != nil {
		return nil, fmt.Errorf("checkpoint %s: %s is not a JSON object: %w", dir, name, err)
	}
	if object == nil {
		return nil, fmt.Errorf("checkpoint %s: %s is null, want a JSON object", dir, name)
	}
	return data, nil
}

// readSide reads one whole file of dir, bounded by maxSideFile.
func readSide(dir, name string) ([]byte, error) {
	if !filepath.IsLocal(name) {
		return nil, fmt.Errorf("checkpoint %s: file name %q leads out of the directory", dir, name)
	}
	path := filepath.Join(dir, name)
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	if info.Size() > maxSideFile {
		return nil, fmt.Errorf("checkpoint %s: %s has %d bytes, at most %d are read", dir, name, info.Size(), maxSideFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	return data, nil
}

// Dir is the directory as it was given to Open.
func (m *Model) Dir() string { return m.dir }

// Config is config.json as it stands. The caller must not change it.
func (m *Model) Config() []byte { return m.config }

// GenerationConfig is generation_config.json as it stands, nil when there is
// none.
func (m *Model) GenerationConfig() []byte { return m.generation }

// File reads a side file such as tokenizer.json; a missing one wraps
// os.ErrNotExist.
func (m *Model) File(name string) ([]byte, error) { return readSide(m.dir, name) }

// Names lists all tensors in sorted order.
func (m *Model) Names() []string {
	names := make([]string, 0, len(m.tensors))
	for name := range m.tensors {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// Has tells whether the checkpoint holds a tensor of this name.
func (m *Model) Has(name string) bool {
	_, ok := m.tensors[name]
	return ok
}

// Info returns element type and shape of a tensor without reading it; ok is
// false when there is none of this name.
func (m *Model) Info(name string) (dtype safetensors.DType, shape []int, ok bool) {
	at, ok := m.tensors[name]
	return at.entry.DType, slices.Clone(at.entry.Shape), ok
}

// Tensor reads a tensor as stored. Errors are of type *TensorError.
func (m *Model) Tensor(name string) (safetensors.Tensor, error) {
	at, ok := m.tensors[name]
	if !ok {
		return safetensors.Tensor{}, &TensorError{m.dir, name, ErrMissingTensor}
	}
	data := make([]byte, at.entry.Bytes)
	if n, err := at.file.ReadAt(data, at.entry.Offset); n < len(data) {
		return safetensors.Tensor{}, &TensorError{m.dir, name, fmt.Errorf("reading %d bytes at %d of %s, got %d: %w",
			len(data), at.entry.Offset, filepath.Base(at.path), n, err)}
	}
	return safetensors.Tensor{DType: at.entry.DType, Shape: slices.Clone(at.entry.Shape), Data: data}, nil
}

// Float32 reads a tensor of the given shape (row-major; none given accepts any)
// as float32; F32, BF16 and F16 convert exactly. Errors are of type
// *TensorError and wrap ErrMissingTensor or ErrShape where these are the cause.
func (m *Model) Float32(name string, shape ...int) ([]float32, error) {
	at, ok := m.tensors[name]
	if ok && len(shape) > 0 && !slices.Equal(shape, at.entry.Shape) {
		return nil, &TensorError{m.dir, name, fmt.Errorf("%w %v, want %v", ErrShape, at.entry.Shape, shape)}
	}
	t, err := m.Tensor(name)
	if err != nil {
		return nil, err
	}
	values, err := t.Float32()
	if err != nil {
		return nil, &TensorError{m.dir, name, err}
	}
	return values, nil
}

// Close closes the weight files.
func (m *Model) Close() error {
	var errs []error
	for _, f := range m.files {
		errs = append(errs, f.Close())
	}
	m.files = nil
	return errors.Join(errs...)
}
