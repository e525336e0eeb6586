package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"

	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// index is the content of model.safetensors.index.json.
type index struct {
	Metadata  map[string]any    `json:"metadata"`
	WeightMap map[string]string `json:"weight_map"` // tensor name -> file name
}

// openWeights finds the weight files as transformers does: the single file if
// there is one, else the shards that the index names.
func (m *Model) openWeights() error {
	single := filepath.Join(m.dir, WeightsFile)
	if _, err := os.Stat(single); err == nil {
		return m.openFile(WeightsFile, nil)
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("checkpoint: %w", err)
	}
	text, err := readSide(m.dir, IndexFile)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("checkpoint %s: neither %s nor %s is there: %w", m.dir, WeightsFile, IndexFile, os.ErrNotExist)
	}
	if err != nil {
		return err
	}
	shards, err := parseIndex(text)
	if err != nil {
		return fmt.Errorf("checkpoint %s: %s: %w", m.dir, IndexFile, err)
	}
	names := make([]string, 0, len(shards))
	for name := range shards {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if err := m.openFile(name, shards[name]); err != nil {
			return err
		}
	}
	return nil
}

// parseIndex turns an index around: file name -> the tensors it holds.
func parseIndex(text []byte) (map[string][]string, error) {
	var x index
	if err := json.Unmarshal(text, &x); err != nil {
		return nil, err
	}
	if len(x.WeightMap) == 0 {
		return nil, errors.New("weight_map is empty or missing")
	}
	shards := map[string][]string{}
	for tensor, file := range x.WeightMap {
		if file != filepath.Base(file) || !filepath.IsLocal(file) || file == "." {
			return nil, fmt.Errorf("tensor %q: file name %q is not a plain name", tensor, file)
		}
		shards[file] = append(shards[file], tensor)
	}
	for _, tensors := range shards {
		sort.Strings(tensors)
	}
	return shards, nil
}

// openFile opens one weight file and registers its tensors: those in want, or
// all when want is nil.
func (m *Model) openFile(name string, want []string) error {
	path := filepath.Join(m.dir, name)
	header, err := safetensors.ReadHeader(path)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	m.files = append(m.files, file)
	if info, err := file.Stat(); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	} else if info.Size() != header.Size {
		return fmt.Errorf("checkpoint: %s changed from %d to %d bytes while it was opened", path, header.Size, info.Size())
	}
	if want == nil {
		for tensor := range header.Tensors {
			want = append(want, tensor)
		}
	}
	for _, tensor := range want {
		entry, ok := header.Tensors[tensor]
		if !ok {
			return &TensorError{m.dir, tensor, fmt.Errorf("%w: %s names %s, which does not hold it", ErrMissingTensor, IndexFile, name)}
		}
		m.tensors[tensor] = location{file, path, entry}
	}
	return nil
}
