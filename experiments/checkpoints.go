package experiments

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/uadt-train/uadt-train/internal/durable"
)

// Suffixes of checkpoint directories that are not checkpoints.
const (
	partialSuffix = ".partial" // being written
	staleSuffix   = ".stale"   // on its way out
)

// Point is a sealed checkpoint.
type Point struct {
	Step   int    // global step it stands at
	Dir    string // absolute
	State  []byte // the document that was sealed
	Pinned bool
}

// stepName names the files of a step so that they sort as numbers do.
func stepName(step int) string { return fmt.Sprintf("step-%06d", step) }

// parseStep reads what stepName writes, with an optional suffix.
func parseStep(name, suffix string) (int, bool) {
	digits, ok := strings.CutPrefix(strings.TrimSuffix(name, suffix), "step-")
	if !ok || !strings.HasSuffix(name, suffix) {
		return 0, false
	}
	step, err := strconv.Atoi(digits)
	if err != nil || step < 0 || stepName(step)+suffix != name {
		return 0, false
	}
	return step, true
}

func (r *Run) checkpointDir(step int) string {
	return filepath.Join(r.dir, "checkpoints", stepName(step))
}

// OpenCheckpoint returns an empty directory, absolute, to fill. It is not a
// checkpoint until SealCheckpoint; what an unsealed one of the same step left
// behind is removed.
func (r *Run) OpenCheckpoint(ctx context.Context, step int) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if step < 0 {
		return "", fmt.Errorf("checkpoint %d: want a step of at least 0", step)
	}
	dir := r.checkpointDir(step) + partialSuffix
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("checkpoint %d: %w", step, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("checkpoint %d: %w", step, err)
	}
	return dir, nil
}

// SealCheckpoint adds state.json and then, last and atomically, manifest.json
// to the directory of OpenCheckpoint, renames it to its final name, which it
// returns, and removes checkpoints beyond the number to keep. A pinned one is
// never removed. On failure there is no checkpoint of step, and those before
// are untouched. The files below the directory must be durable already.
func (r *Run) SealCheckpoint(ctx context.Context, step int, state []byte, pin bool) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	r.checkpoints.Lock()
	defer r.checkpoints.Unlock()
	dir := r.checkpointDir(step)
	partial := dir + partialSuffix
	if _, err := os.Stat(partial); err != nil {
		return "", fmt.Errorf("seal checkpoint %d: it was not opened: %w", step, err)
	}
	if err := r.disk.bytes(filepath.Join(partial, "state.json"), state); err != nil {
		return "", fmt.Errorf("seal checkpoint %d: %w", step, err)
	}
	if err := r.writeManifest(partial, step, pin); err != nil {
		return "", fmt.Errorf("seal checkpoint %d: %w", step, err)
	}
	if err := replaceDir(partial, dir); err != nil {
		return "", fmt.Errorf("seal checkpoint %d: %w", step, err)
	}
	if err := r.prune(); err != nil {
		r.spec.Logger.Warn("old checkpoints could not be removed", "run", r.dir, "error", err)
	}
	return dir, nil
}

// finishSeals renames directories whose manifest was written before a crash: the
// manifest is what makes a checkpoint.
func (r *Run) finishSeals() error {
	entries, err := os.ReadDir(filepath.Join(r.dir, "checkpoints"))
	if err != nil {
		return fmt.Errorf("list checkpoints: %w", err)
	}
	for _, e := range entries {
		step, ok := parseStep(e.Name(), partialSuffix)
		if !ok {
			continue
		}
		partial := r.checkpointDir(step) + partialSuffix
		m, err := readManifest(partial)
		if err != nil || m.verify(partial, step) != nil {
			continue // not sealed: swept next
		}
		if err := replaceDir(partial, r.checkpointDir(step)); err != nil {
			return fmt.Errorf("finish checkpoint %d: %w", step, err)
		}
	}
	return nil
}

// replaceDir renames from to to, moving aside what is there.
func replaceDir(from, to string) error {
	stale := to + staleSuffix
	if err := os.RemoveAll(stale); err != nil {
		return err
	}
	if err := os.Rename(to, stale); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := durable.SyncDir(filepath.Dir(to)); err != nil {
		return err
	}
	return os.RemoveAll(stale)
}

// prune removes all but the newest Keep checkpoints and the pinned ones. A
// directory whose manifest cannot be read is left for people to look at.
func (r *Run) prune() error {
	steps, err := r.Checkpoints()
	if err != nil {
		return err
	}
	kept := 0
	var problems []error
	for _, step := range slices.Backward(steps) {
		m, err := readManifest(r.checkpointDir(step))
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if m.Pinned {
			continue
		}
		if kept++; kept <= r.spec.Keep {
			continue
		}
		// Renamed first, so that a crash never leaves a half-removed checkpoint.
		stale := r.checkpointDir(step) + staleSuffix
		problems = append(problems, os.Rename(r.checkpointDir(step), stale), os.RemoveAll(stale))
	}
	return errors.Join(problems...)
}

// Checkpoints lists the steps of the sealed checkpoints, lowest first.
func (r *Run) Checkpoints() ([]int, error) {
	entries, err := os.ReadDir(filepath.Join(r.dir, "checkpoints"))
	if err != nil {
		return nil, fmt.Errorf("list checkpoints: %w", err)
	}
	var steps []int
	for _, e := range entries {
		step, ok := parseStep(e.Name(), "")
		if ok && e.IsDir() {
			steps = append(steps, step)
		}
	}
	slices.Sort(steps)
	return steps, nil
}

// Latest returns the newest checkpoint that is whole, nil when there is none.
// One that its manifest does not vouch for is passed over with a warning.
func (r *Run) Latest() (*Point, error) {
	steps, err := r.Checkpoints()
	if err != nil {
		return nil, err
	}
	for _, step := range slices.Backward(steps) {
		point, err := r.checkpoint(step)
		if err == nil {
			return point, nil
		}
		r.spec.Logger.Warn("checkpoint passed over", "run", r.dir, "step", step, "error", err)
	}
	return nil, nil
}

// checkpoint reads and verifies one.
func (r *Run) checkpoint(step int) (*Point, error) {
	dir := r.checkpointDir(step)
	m, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	if err := m.verify(dir, step); err != nil {
		return nil, err
	}
	state, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		return nil, fmt.Errorf("checkpoint %d: %w", step, err)
	}
	return &Point{Step: step, Dir: dir, State: state, Pinned: m.Pinned}, nil
}

// Resume finds the newest whole checkpoint (nil: start from nothing) and takes
// back what was recorded after it: later metrics, ledgers and checkpoints that
// are not whole. Rollout batches stay: they are executed again.
func (r *Run) Resume() (*Point, error) {
	point, err := r.Latest()
	if err != nil {
		return nil, fmt.Errorf("resume %s: %w", r.dir, err)
	}
	step := -1
	if point != nil {
		step = point.Step
	}
	if err := r.metrics.cut(step); err != nil {
		return nil, fmt.Errorf("resume %s: %w", r.dir, err)
	}
	for folder, suffix := range map[string]string{"ledger": ".parquet", "checkpoints": ""} {
		if err := r.removeAfter(folder, suffix, step); err != nil {
			return nil, fmt.Errorf("resume %s: %w", r.dir, err)
		}
	}
	return point, nil
}

// removeAfter removes the step files of folder that lie after step.
func (r *Run) removeAfter(folder, suffix string, step int) error {
	dir := filepath.Join(r.dir, folder)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var problems []error
	for _, e := range entries {
		if n, ok := parseStep(e.Name(), suffix); ok && n > step {
			problems = append(problems, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errors.Join(problems...), durable.SyncDir(dir))
}
