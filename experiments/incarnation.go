package experiments

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// LastIncarnation returns the highest incarnation that this directory knows, 0
// for none. A lease on a bus whose store was lost must start above it.
func (r *Run) LastIncarnation() (uint64, error) {
	path := filepath.Join(r.dir, "incarnation")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("incarnation: %w", err)
	}
	e, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return e, nil
}

// RecordIncarnation makes e durable before anything is done under it. It fails
// unless e is above every earlier one.
func (r *Run) RecordIncarnation(e uint64) error {
	last, err := r.LastIncarnation()
	if err != nil {
		return err
	}
	if e <= last {
		return fmt.Errorf("incarnation %d: the run has had %d already", e, last)
	}
	return r.disk.bytes(filepath.Join(r.dir, "incarnation"), []byte(strconv.FormatUint(e, 10)+"\n"))
}
