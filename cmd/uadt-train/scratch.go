package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/uadt-train/uadt-train/internal/blob"
)

// scratchStore opens an image store in a temporary folder, for commands that
// read records without keeping them. remove deletes it.
func scratchStore() (store *blob.Store, remove func() error, err error) {
	dir, err := os.MkdirTemp("", "uadt-images-")
	if err != nil {
		return nil, nil, fmt.Errorf("temporary image store: %w", err)
	}
	remove = func() error { return os.RemoveAll(dir) }
	if store, err = blob.Open(dir); err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return store, remove, nil
}

// missingFolders lists dir and those above it that are not there, dir first.
func missingFolders(dir string) []string {
	var missing []string
	for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			return missing
		}
		missing = append(missing, dir)
	}
}

// removeFolders removes folders that were missing before: the first with all that
// is in it, those above it as far as nobody has put anything else there.
func removeFolders(missing []string) error {
	if len(missing) == 0 {
		return nil
	}
	if err := os.RemoveAll(missing[0]); err != nil {
		return fmt.Errorf("removing what a refused command left: %w", err)
	}
	for _, dir := range missing[1:] {
		if os.Remove(dir) != nil {
			break // somebody else's file is in it
		}
	}
	return nil
}
