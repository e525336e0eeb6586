package safetensors

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ReadFile reads and checks the whole file at path. The tensors share one
// buffer.
func ReadFile(path string) (File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return File{}, err
	}
	f, err := Decode(data)
	if err != nil {
		return File{}, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// ReadHeader reads and checks the header of the file at path and none of its
// data.
func ReadHeader(path string) (h Header, err error) {
	file, err := os.Open(path)
	if err != nil {
		return Header{}, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return Header{}, err
	}
	if h, err = decodeHeader(file, info.Size()); err != nil {
		return Header{}, fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}

// WriteFile writes f to path so that a reader or a crash sees the old file or
// the new one, never a part: a temporary file in the same directory, synced,
// renamed over path, and the directory synced. Nothing is left behind on
// failure.
func WriteFile(path string, f File) error {
	dir := filepath.Dir(path)
	temp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	err = errors.Join(fill(temp, f), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(temp.Name()))
	}
	return syncDir(dir)
}

// fill writes f to temp and makes it durable.
func fill(temp *os.File, f File) error {
	out := bufio.NewWriterSize(temp, 1<<20)
	if err := WriteTo(out, f); err != nil {
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

// syncDir makes a rename in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
