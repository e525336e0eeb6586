package main

import (
	"errors"
	"fmt"
	"os"

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
