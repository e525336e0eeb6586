package experiments

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// disk writes files so that a reader or a crash sees the old one or the new
// one, never a part.
type disk struct {
	// wrap stands between the package and every file that it writes; tests put a
	// full disk there. nil wraps nothing.
	wrap func(io.Writer) io.Writer
}

// tempPrefix marks files that are being written; Open removes leftovers.
const tempPrefix = ".writing-"

// write replaces path by what fill writes: a temporary file in the same
// directory, synced, renamed over path, and the directory synced. On failure
// the old file stays and nothing is left behind.
func (d disk) write(path string, fill func(io.Writer) error) error {
	dir, name := filepath.Split(path)
	temp, err := os.CreateTemp(dir, tempPrefix+name+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	err = errors.Join(d.fill(temp, fill), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(temp.Name())))
	}
	return syncDir(dir)
}

func (d disk) fill(temp *os.File, fill func(io.Writer) error) error {
	out := bufio.NewWriterSize(d.through(temp), 1<<20)
	if err := fill(out); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if err := temp.Chmod(0o644); err != nil {
		return err
	}
	return temp.Sync()
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

// syncDir makes renames and removals in dir durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
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
	return strings.HasPrefix(name, tempPrefix) || strings.HasSuffix(name, partialSuffix) || strings.HasSuffix(name, staleSuffix)
}
