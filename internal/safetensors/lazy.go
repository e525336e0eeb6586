package safetensors

import (
	"fmt"
	"io"

	"github.com/uadt-train/uadt-train/internal/durable"
)

// Lazy is a tensor whose bytes are read when it is written.
type Lazy struct {
	DType DType
	Shape []int
	// Read returns what Tensor.Data would hold. It is called once for each time
	// that the tensor is written.
	Read func() ([]byte, error)
}

// WriteLazy writes to w what WriteTo writes for the same tensors, and holds one
// of them in memory at a time. All names, types and shapes are checked before
// the first byte.
func WriteLazy(w io.Writer, metadata map[string]string, tensors map[string]Lazy) error {
	f := File{Metadata: metadata, Tensors: make(map[string]Tensor, len(tensors))}
	names := make([]string, 0, len(tensors))
	for name, l := range tensors {
		t := Tensor{DType: l.DType, Shape: l.Shape}
		if _, err := span(name, t); err != nil {
			return err
		}
		f.Tensors[name] = t
		names = append(names, name)
	}
	if err := writeHeader(w, f, inOrder(f, names)); err != nil {
		return err
	}
	for _, name := range names {
		if err := writeLazy(w, name, tensors[name]); err != nil {
			return err
		}
	}
	return nil
}

func writeLazy(w io.Writer, name string, l Lazy) error {
	data, err := l.Read()
	if err != nil {
		return fmt.Errorf("reading tensor %q: %w", name, err)
	}
	t := Tensor{DType: l.DType, Shape: l.Shape, Data: data}
	if len(data) != t.Len()*l.DType.Size() {
		return wrongData(name, t)
	}
	if _, err := w.Write(data); err != nil {
		return fmt.Errorf("writing tensor %q: %w", name, err)
	}
	return nil
}

// WriteLazyFile writes tensors to path as WriteFile does, one of them in memory
// at a time.
func WriteLazyFile(path string, metadata map[string]string, tensors map[string]Lazy) error {
	return durable.Write(path, func(w io.Writer) error { return WriteLazy(w, metadata, tensors) })
}
