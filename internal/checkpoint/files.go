package checkpoint

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// SideFiles reads every regular file of the directory that is neither weights
// nor hidden: what a checkpoint written from this model must carry along. Files
// in subdirectories are left out.
func (m *Model) SideFiles() (map[string][]byte, error) {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	files := map[string][]byte{}
	for _, e := range entries {
		name := e.Name()
		info, err := os.Stat(filepath.Join(m.dir, name))
		if err != nil {
			return nil, fmt.Errorf("checkpoint: %w", err)
		}
		if !info.Mode().IsRegular() || isWeights(name) || name[0] == '.' || filepath.Ext(name) == ".safetensors" {
			continue
		}
		if files[name], err = readSide(m.dir, name); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// FromFloat32 makes a tensor of element type dtype, F32 or BF16, from values
// (row-major). BF16 rounds to nearest, ties to even.
func FromFloat32(dtype safetensors.DType, values []float32, shape ...int) (safetensors.Tensor, error) {
	var t safetensors.Tensor
	switch dtype {
	case safetensors.F32:
		t = safetensors.FromFloat32(values, shape...)
	case safetensors.BF16:
		t = safetensors.ToBF16(values, shape...)
	default:
		return t, fmt.Errorf("checkpoint: cannot write element type %q, want F32 or BF16", dtype)
	}
	if t.Len() != len(values) {
		return t, fmt.Errorf("checkpoint: %d values for shape %v", len(values), shape)
	}
	return t, nil
}
