// Package durable replaces files so that a reader, or a crash of the process or
// the machine, sees the old one or the new one, never a part of either. Run
// directories, model directories and safetensors files are written with it.
//
// It knows no format, keeps no file open, and locks nothing: of two writers of
// one path the later one wins.
package durable

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// prefix marks files that are being written. It hides them from whoever lists
// a model directory.
const prefix = ".writing-"

// Write replaces path by what fill writes, readable by all: a temporary file in
// the same directory, synced, renamed over path, and the directory synced. On
// failure the old file stays and nothing is left behind.
func Write(path string, fill func(io.Writer) error) error {
	dir, name := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	temp, err := os.CreateTemp(dir, prefix+name+"-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	err = errors.Join(complete(temp, fill), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, errors.Join(err, os.Remove(temp.Name())))
	}
	return SyncDir(dir)
}

// complete writes the content of temp and makes it durable.
func complete(temp *os.File, fill func(io.Writer) error) error {
	out := bufio.NewWriterSize(temp, 1<<20)
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

// WriteBytes replaces path by data, as Write does.
func WriteBytes(path string, data []byte) error {
	return Write(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// SyncDir makes renames and removals in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("syncing a directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("syncing directory %s: %w", dir, err)
	}
	return nil
}

// Unfinished says that a file of this name is what a crash left of a Write.
func Unfinished(name string) bool { return strings.HasPrefix(name, prefix) }
