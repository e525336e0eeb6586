package experiments

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/rollout"
)

func (r *Run) rolloutPath(step int) string {
	return filepath.Join(r.dir, "rollouts", stepName(step)+".safetensors")
}

// PutRollout makes a rollout batch durable: groups in job order exactly as the
// fleet returned them, and meta, a document that passes through unread. The
// file appears whole, by renaming, or not at all.
func (r *Run) PutRollout(ctx context.Context, step int, meta []byte, groups []rollout.Group) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	file, err := encodeRollout(meta, groups)
	if err != nil {
		return fmt.Errorf("rollout batch of step %d: %w", step, err)
	}
	return r.putTensors(r.rolloutPath(step), file)
}

// Rollout returns what PutRollout wrote. It fails with an error that wraps
// fs.ErrNotExist when there is no batch of step, and names the file when it
// cannot be read.
func (r *Run) Rollout(ctx context.Context, step int) (meta []byte, groups []rollout.Group, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	return ReadRollout(r.rolloutPath(step))
}

// ReadRollout reads the rollout batch at path, of any run directory.
func ReadRollout(path string) (meta []byte, groups []rollout.Group, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("rollout batch: %w", err)
	}
	meta, groups, err = decodeRollout(data)
	if err != nil {
		return nil, nil, fmt.Errorf("rollout batch %s: %w", path, err)
	}
	return meta, groups, nil
}

// putScores writes the per-token values of a ledger beside the rollout batch.
func (r *Run) putScores(step int, arrays map[string][]float32) error {
	file := safetensors.File{Tensors: map[string]safetensors.Tensor{}}
	for name, values := range arrays {
		file.Tensors[name] = safetensors.FromFloat32(values)
	}
	return r.putTensors(filepath.Join(r.dir, "rollouts", fmt.Sprintf("scores-%06d.safetensors", step)), file)
}

func (r *Run) putTensors(path string, file safetensors.File) error {
	return r.disk.write(path, func(w io.Writer) error { return safetensors.WriteTo(w, file) })
}
