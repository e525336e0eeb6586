package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Store keeps blobs in a directory. It may be used by several goroutines and
// by several processes at once.
type Store struct{ dir string }

// Open makes the directory if it is missing and returns the store in it.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(dir, "tmp"), 0o755); err != nil {
		return nil, fmt.Errorf("blob store: %w", err)
	}
	return &Store{dir: dir}, nil
}

// Path is where the blob of digest lies, whether or not it is there. It fails
// with ErrDigest.
func (s *Store) Path(digest string) (string, error) {
	if err := CheckDigest(digest); err != nil {
		return "", err
	}
	return filepath.Join(s.dir, digest[:2], digest), nil
}

// Put stores data and returns its digest. A reader sees the whole blob or
// none; a blob that is there already is left alone unless it is damaged.
func (s *Store) Put(data []byte) (digest string, err error) {
	digest = DigestOf(data)
	path, err := s.Path(digest)
	if err != nil {
		return "", err
	}
	if present, err := os.ReadFile(path); err == nil && DigestOf(present) == digest {
		return digest, nil
	}
	if err := s.write(path, data); err != nil {
		return "", fmt.Errorf("storing blob %s: %w", digest, err)
	}
	return digest, nil
}

// write makes path appear with its full content. The content is synced, the name
// is not: a crash of the machine may lose the blob whole, never leave a part, and
// whoever needs it puts it again.
func (s *Store) write(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "blob-*")
	if err != nil {
		return err
	}
	_, err = temp.Write(data)
	if err == nil {
		err = temp.Chmod(0o644)
	}
	if err == nil {
		err = temp.Sync()
	}
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp.Name()))
	}
	return nil
}

// Has says whether there is a file for digest. It does not read it.
func (s *Store) Has(digest string) (bool, error) {
	path, err := s.Path(digest)
	if err != nil {
		return false, err
	}
	switch _, err := os.Stat(path); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("blob store: %w", err)
	}
}

// Get reads the blob of digest. It fails with ErrNotFound, ErrDigest, or
// ErrCorrupt when the file was damaged.
func (s *Store) Get(ctx context.Context, digest string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	path, err := s.Path(digest)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s in %s", ErrNotFound, digest, s.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("blob store: %w", err)
	}
	if got := DigestOf(data); got != digest {
		return nil, fmt.Errorf("%w: %s has digest %s", ErrCorrupt, path, got)
	}
	return data, nil
}
