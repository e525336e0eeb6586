package safetensors

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/uadt-train/uadt-train/internal/durable"
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
// the new one, never a part. Nothing is left behind on failure.
func WriteFile(path string, f File) error {
	return durable.Write(path, func(w io.Writer) error { return WriteTo(w, f) })
}
