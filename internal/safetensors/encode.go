package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"sort"
	"unicode/utf8"
)

// Encode renders f. The result is a function of f alone: tensors lie in order
// of falling element size, then of name, so that every tensor is aligned to
// its element in a buffer that is aligned to 8 bytes.
func Encode(f File) ([]byte, error) { return AppendTo(nil, f) }

// AppendTo appends the rendering of f to dst and returns the extended slice,
// as append does; a buffer that is kept between calls saves the allocation.
func AppendTo(dst []byte, f File) ([]byte, error) {
	names, err := order(f)
	if err != nil {
		return dst, err
	}
	header, size, err := encodeHeader(f, names)
	if err != nil {
		return dst, err
	}
	dst = slices.Grow(dst, 8+len(header)+size)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(len(header)))
	dst = append(dst, header...)
	for _, name := range names {
		dst = append(dst, f.Tensors[name].Data...)
	}
	return dst, nil
}

// WriteTo writes the rendering of f to w without building it in memory first.
func WriteTo(w io.Writer, f File) error {
	names, err := order(f)
	if err != nil {
		return err
	}
	if err := writeHeader(w, f, names); err != nil {
		return err
	}
	for _, name := range names {
		if _, err := w.Write(f.Tensors[name].Data); err != nil {
			return fmt.Errorf("writing tensor %q: %w", name, err)
		}
	}
	return nil
}

// writeHeader writes what stands before the tensors of f, which follow in the
// order of names.
func writeHeader(w io.Writer, f File, names []string) error {
	header, _, err := encodeHeader(f, names)
	if err != nil {
		return err
	}
	prefix := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	if _, err := w.Write(append(prefix, header...)); err != nil {
		return fmt.Errorf("writing safetensors header: %w", err)
	}
	return nil
}

// order checks every tensor of f and returns the names in data order.
func order(f File) ([]string, error) {
	names := make([]string, 0, len(f.Tensors))
	for name, t := range f.Tensors {
		size, err := span(name, t)
		if err != nil {
			return nil, err
		}
		if len(t.Data) != size {
			return nil, wrongData(name, t)
		}
		names = append(names, name)
	}
	return inOrder(f, names), nil
}

// inOrder sorts names into data order.
func inOrder(f File, names []string) []string {
	sort.Slice(names, func(i, j int) bool {
		a, b := f.Tensors[names[i]].DType.Size(), f.Tensors[names[j]].DType.Size()
		if a != b {
			return a > b
		}
		return names[i] < names[j]
	})
	return names
}

// span says whether a tensor of t's type and shape may be written under name,
// and how many bytes it has.
func span(name string, t Tensor) (int, error) {
	if name == metadataKey {
		return 0, fmt.Errorf("tensor name %q is reserved", name)
	}
	if !utf8.ValidString(name) {
		return 0, fmt.Errorf("tensor name %q is not UTF-8", name)
	}
	size := t.DType.Size()
	if size == 0 {
		return 0, fmt.Errorf("tensor %q: unknown element type %q", name, t.DType)
	}
	n := t.Len()
	if n < 0 || n > math.MaxInt/size {
		return 0, fmt.Errorf("tensor %q: bad shape %v", name, t.Shape)
	}
	return n * size, nil
}

func wrongData(name string, t Tensor) error {
	return fmt.Errorf("tensor %q: %d bytes of data for %s%v", name, len(t.Data), t.DType, t.Shape)
}

// entry is the header's description of one tensor.
type entry struct {
	DType   DType `json:"dtype"`
	Shape   []int `json:"shape"`
	Offsets []int `json:"data_offsets"` // [begin, end) in the data section
}

// encodeHeader renders the padded JSON header and counts the data bytes. It
// looks at types and shapes only.
func encodeHeader(f File, names []string) ([]byte, int, error) {
	var out bytes.Buffer
	out.WriteByte('{')
	if len(f.Metadata) > 0 {
		meta, err := json.Marshal(f.Metadata) // sorts the keys
		if err != nil {
			return nil, 0, fmt.Errorf("safetensors metadata: %w", err)
		}
		fmt.Fprintf(&out, "%q:%s", metadataKey, meta)
	}
	offset := 0
	for _, name := range names {
		t := f.Tensors[name]
		if out.Len() > 1 {
			out.WriteByte(',')
		}
		shape := t.Shape
		if shape == nil {
			shape = []int{}
		}
		key, err := json.Marshal(name)
		if err != nil {
			return nil, 0, fmt.Errorf("tensor name %q: %w", name, err)
		}
		end := offset + t.Len()*t.DType.Size()
		value, err := json.Marshal(entry{t.DType, shape, []int{offset, end}})
		if err != nil {
			return nil, 0, fmt.Errorf("tensor %q: %w", name, err)
		}
		out.Write(key)
		out.WriteByte(':')
		out.Write(value)
		offset = end
	}
	out.WriteByte('}')
	for out.Len()%8 != 0 {
		out.WriteByte(' ')
	}
	if out.Len() > MaxHeader {
		return nil, 0, fmt.Errorf("safetensors header of %d bytes is over %d", out.Len(), MaxHeader)
	}
	return out.Bytes(), offset, nil
}
