package graph

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// Names below a checkpoint directory.
const (
	policyName    = "policy"
	optimizerName = "optimizer.safetensors"
)

// keptOffers is how many published directories stay: the last and the one
// before it.
const keptOffers = 2

func policyDir(checkpoint string) string { return filepath.Join(checkpoint, policyName) }

// sideFiles reads what a written directory carries along, config.json saying
// that the weights are float32.
func sideFiles(model *checkpoint.Model) (map[string][]byte, error) {
	files, err := model.SideFiles()
	if err != nil {
		return nil, err
	}
	var config map[string]json.RawMessage
	if err := json.Unmarshal(model.Config(), &config); err != nil {
		return nil, fmt.Errorf("model %s: config.json: %w", model.Dir(), err)
	}
	for _, key := range []string{"torch_dtype", "dtype"} {
		if _, ok := config[key]; ok {
			config[key] = json.RawMessage(`"float32"`)
		}
	}
	text, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("model %s: config.json: %w", model.Dir(), err)
	}
	files[checkpoint.ConfigFile] = append(text, '\n')
	return files, nil
}

// Publish writes the weights as a Hugging Face directory in float32.
func (t *Trainer) Publish(ctx context.Context, policy rollout.Policy) (rollout.Offer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fail := func(err error) (rollout.Offer, error) {
		return rollout.Offer{}, fmt.Errorf("publish policy %d.%d: %w", policy.Incarnation, policy.Version, err)
	}
	s, err := t.current()
	if err := errors.Join(err, ctx.Err()); err != nil {
		return fail(err)
	}
	if policy.Incarnation < t.incarnation {
		return fail(&IncarnationError{Have: t.incarnation, Got: policy.Incarnation})
	}
	tensors := s.weights.tensors(s.values)
	policy.Digest = checkpoint.Digest(tensors)
	root, err := filepath.Abs(filepath.Join(t.options.WorkDir, "policies"))
	if err != nil {
		return fail(err)
	}
	if t.published == nil {
		if t.published, err = earlier(root); err != nil {
			return fail(err)
		}
	}
	dir := filepath.Join(root, policy.String())
	if err := writeTransient(dir, s.files, tensors); err != nil {
		return fail(err)
	}
	t.published = append(slices.DeleteFunc(t.published, func(d string) bool { return d == dir }), dir)
	for len(t.published) > keptOffers {
		if err := os.RemoveAll(t.published[0]); err != nil {
			return fail(err)
		}
		t.published = t.published[1:]
	}
	return rollout.Offer{Policy: policy, Transport: rollout.ByDirectory, Path: dir}, nil
}

// writeTransient writes a model directory that appears whole or not at all. It
// is not synced to disk, which would take longer than the rest of a step: a
// published policy is read at once and made again after a crash.
func writeTransient(dir string, files map[string][]byte, tensors map[string]safetensors.Tensor) (err error) {
	root := filepath.Dir(dir)
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(root, ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	weights, err := safetensors.Encode(safetensors.File{Metadata: map[string]string{"format": "pt"}, Tensors: tensors})
	if err != nil {
		return err
	}
	all := maps.Clone(files)
	all[checkpoint.WeightsFile] = weights
	for name, data := range all {
		if err := os.WriteFile(filepath.Join(temp, name), data, 0o644); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Chmod(temp, 0o755), os.RemoveAll(dir)); err != nil {
		return err
	}
	return os.Rename(temp, dir)
}

// earlier lists what former processes published below root, oldest first, so
// that it goes as if this one had.
func earlier(root string) ([]string, error) {
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	dirs, ages := []string{}, map[string]time.Time{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		dir := filepath.Join(root, e.Name())
		dirs, ages[dir] = append(dirs, dir), info.ModTime()
	}
	slices.SortStableFunc(dirs, func(a, b string) int { return ages[a].Compare(ages[b]) })
	return dirs, nil
}

// pending is a checkpoint that is being written.
type pending struct {
	done  chan struct{}
	saved trainer.Saved
	err   error
}

// Wait implements trainer.Pending.
func (p *pending) Wait(ctx context.Context) (trainer.Saved, error) {
	select {
	case <-p.done:
		return p.saved, p.err
	case <-ctx.Done():
		return trainer.Saved{}, fmt.Errorf("waiting for a checkpoint to be written: %w", context.Cause(ctx))
	}
}

// Save copies weights and optimizer state and writes the copy in a goroutine,
// which Close waits for.
func (t *Trainer) Save(ctx context.Context, dir string) (trainer.Pending, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, err := t.current()
	if err := errors.Join(err, ctx.Err()); err != nil {
		return nil, fmt.Errorf("save to %s: %w", dir, err)
	}
	values, state := slices.Clone(s.values), s.snapshot()
	files := maps.Clone(s.files)
	p := &pending{done: make(chan struct{}), saved: trainer.Saved{Policy: policyName, Optimizer: optimizerName, Step: s.step}}
	t.saves.Go(func() {
		defer close(p.done)
		p.saved.Digest, p.err = writeCheckpoint(dir, s.weights, values, files, state)
		if p.err != nil {
			p.saved, p.err = trainer.Saved{}, fmt.Errorf("save to %s: %w", dir, p.err)
		}
	})
	return p, nil
}

// writeCheckpoint writes policy and optimizer state.
func writeCheckpoint(dir string, l *layoutOfWeights, values []float32, files map[string][]byte, state safetensors.File) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	digest, err := checkpoint.Write(policyDir(dir), checkpoint.Contents{Files: files, Tensors: l.tensors(values)})
	if err != nil {
		return "", err
	}
	return digest, safetensors.WriteFile(filepath.Join(dir, optimizerName), state)
}

// snapshot copies the optimizer state: moments by tensor name, and counts.
func (s *stage) snapshot() safetensors.File {
	f := safetensors.File{Metadata: map[string]string{"step": strconv.Itoa(s.step), "updates": strconv.Itoa(s.optimizer.updates)}, Tensors: map[string]safetensors.Tensor{}}
	for kind, moments := range map[string][]float32{"m.": s.optimizer.m, "v.": s.optimizer.v} {
		for name, tensor := range s.weights.tensors(slices.Clone(moments)) {
			f.Tensors[kind+name] = tensor
		}
	}
	return f
}

// optimizerState is a snapshot that was read back.
type optimizerState struct {
	step, updates int
	tensors       map[string]safetensors.Tensor
}

// readOptimizer reads the optimizer state of a checkpoint.
func readOptimizer(dir string) (*optimizerState, error) {
	path := filepath.Join(dir, optimizerName)
	f, err := safetensors.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("resume point: %w", err)
	}
	state := &optimizerState{tensors: f.Tensors}
	for key, to := range map[string]*int{"step": &state.step, "updates": &state.updates} {
		if *to, err = strconv.Atoi(f.Metadata[key]); err != nil || *to < 0 {
			return nil, fmt.Errorf("resume point: %s: metadata %q is %q, want a count", path, key, f.Metadata[key])
		}
	}
	return state, nil
}

// restore fills an optimizer from the state.
func (o *optimizerState) restore(to *adamw) error {
	to.updates = o.updates
	for kind, moments := range map[string][]float32{"m.": to.m, "v.": to.v} {
		for _, e := range to.layout.entries {
			tensor, ok := o.tensors[kind+e.spec.Name]
			if !ok || !slices.Equal(tensor.Shape, e.spec.Shape) {
				return fmt.Errorf("optimizer state of %s%s has shape %v, want %v", kind, e.spec.Name, tensor.Shape, e.spec.Shape)
			}
			data, err := tensor.Float32()
			if err != nil {
				return fmt.Errorf("optimizer state of %s%s: %w", kind, e.spec.Name, err)
			}
			copy(moments[e.offset:], data)
		}
	}
	return nil
}
