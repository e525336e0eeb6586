package experiments

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/uadt-train/uadt-train/internal/durable"
)

// disk writes files so that a reader or a crash sees the old one or the new
// one, never a part.
type disk struct {
	// wrap stands between the package and every file that it writes; tests put a
	// full disk there. nil wraps nothing.
	wrap func(io.Writer) io.Writer
}

// write replaces path by what fill writes, durably. On failure the old file stays
// and nothing is left behind.
func (d disk) write(path string, fill func(io.Writer) error) error {
	return durable.Write(path, func(w io.Writer) error { return fill(d.through(w)) })
}

// bytes replaces path by data.
func (d disk) bytes(path string, data []byte) error {
	return d.write(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func (d disk) through(w io.Writer) io.Writer {
	if d.wrap == nil {
		return w
	}
	return d.wrap(w)
}

// sweep removes what a crash left half-written in dir.
func sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	var problems []error
	for _, e := range entries {
		if isTemp(e.Name()) {
			problems = append(problems, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(problems...)
}

// isTemp says that name is of something that was never finished.
func isTemp(name string) bool {
	return durable.Unfinished(name) || strings.HasSuffix(name, partialSuffix) || strings.HasSuffix(name, staleSuffix)
}
