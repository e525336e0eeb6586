package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sort"
)

// Header is what a file says about its tensors, without their data.
type Header struct {
	Metadata map[string]string
	Tensors  map[string]Entry
	// Size is the length of the whole file in bytes, header included.
	Size int64
}

// Entry places one tensor in a file.
type Entry struct {
	DType  DType
	Shape  []int
	Offset int64 // first byte, from the start of the file
	Bytes  int64
}

// Decode reads a file from memory without copying: the tensors alias data,
// which must not change as long as they are used. It is strict: the tensors
// must fill the data section without gap or overlap, each of exactly the size
// that its type and shape span, and no name may occur twice. All errors wrap
// ErrFormat.
func Decode(data []byte) (File, error) {
	h, err := decodeHeader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return File{}, err
	}
	f := File{Metadata: h.Metadata, Tensors: make(map[string]Tensor, len(h.Tensors))}
	for name, e := range h.Tensors {
		end := e.Offset + e.Bytes
		f.Tensors[name] = Tensor{DType: e.DType, Shape: e.Shape, Data: data[e.Offset:end:end]}
	}
	return f, nil
}

// decodeHeader reads and checks the header of a file of size bytes.
func decodeHeader(r io.ReaderAt, size int64) (Header, error) {
	if size < 8 {
		return Header{}, fmt.Errorf("%w: %d bytes, want at least 8", ErrFormat, size)
	}
	var prefix [8]byte
	if _, err := r.ReadAt(prefix[:], 0); err != nil {
		return Header{}, fmt.Errorf("reading safetensors header length: %w", err)
	}
	length := binary.LittleEndian.Uint64(prefix[:])
	if length > MaxHeader {
		return Header{}, fmt.Errorf("%w: header of %d bytes is over the cap of %d", ErrFormat, length, MaxHeader)
	}
	if length > uint64(size-8) {
		return Header{}, fmt.Errorf("%w: header of %d bytes in a file of %d", ErrFormat, length, size)
	}
	text := make([]byte, length)
	if _, err := r.ReadAt(text, 8); err != nil && length > 0 {
		return Header{}, fmt.Errorf("reading safetensors header: %w", err)
	}
	h, err := parseHeader(text)
	if err != nil {
		return Header{}, fmt.Errorf("%w: header: %w", ErrFormat, err)
	}
	h.Size = size
	if err := place(h, 8+int64(length)); err != nil {
		return Header{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return h, nil
}

// parseHeader reads the JSON of a header. Entry.Offset is relative to the data
// section until place moves it.
func parseHeader(text []byte) (Header, error) {
	h := Header{Tensors: map[string]Entry{}}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return h, fmt.Errorf("no JSON object at its start (%v)", err)
	}
	sawMetadata := false
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return h, err
		}
		name, _ := tok.(string) // an object's key is always a string
		if name == metadataKey {
			if sawMetadata {
				return h, fmt.Errorf("%q occurs twice", name)
			}
			sawMetadata = true
			if err := dec.Decode(&h.Metadata); err != nil {
				return h, fmt.Errorf("%s: %w", metadataKey, err)
			}
			continue
		}
		if _, twice := h.Tensors[name]; twice {
			return h, fmt.Errorf("tensor %q occurs twice", name)
		}
		var e entry
		if err := dec.Decode(&e); err != nil {
			return h, fmt.Errorf("tensor %q: %w", name, err)
		}
		if h.Tensors[name], err = e.resolve(); err != nil {
			return h, fmt.Errorf("tensor %q: %w", name, err)
		}
	}
	if _, err := dec.Token(); err != nil {
		return h, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return h, fmt.Errorf("bytes after the JSON object")
	}
	return h, nil
}

// resolve checks e by itself.
func (e entry) resolve() (Entry, error) {
	size := e.DType.Size()
	if size == 0 {
		return Entry{}, fmt.Errorf("unknown element type %q", e.DType)
	}
	if e.Shape == nil {
		return Entry{}, fmt.Errorf("no shape")
	}
	if len(e.Offsets) != 2 || e.Offsets[0] < 0 || e.Offsets[1] < e.Offsets[0] {
		return Entry{}, fmt.Errorf("bad data_offsets %v", e.Offsets)
	}
	n, length := elements(e.Shape), e.Offsets[1]-e.Offsets[0]
	if n < 0 || length%size != 0 || length/size != n {
		return Entry{}, fmt.Errorf("%d bytes of data for %s%v", length, e.DType, e.Shape)
	}
	return Entry{DType: e.DType, Shape: e.Shape, Offset: int64(e.Offsets[0]), Bytes: int64(length)}, nil
}

// place moves all offsets behind the header at base and checks that the
// tensors tile the data section.
func place(h Header, base int64) error {
	names := make([]string, 0, len(h.Tensors))
	for name := range h.Tensors {
		names = append(names, name)
	}
	sort.Slice(names, func(i, j int) bool {
		a, b := h.Tensors[names[i]], h.Tensors[names[j]]
		if a.Offset != b.Offset {
			return a.Offset < b.Offset
		}
		if a.Bytes != b.Bytes {
			return a.Bytes < b.Bytes // an empty tensor lies before the one at its place
		}
		return names[i] < names[j]
	})
	next := int64(0)
	for _, name := range names {
		e := h.Tensors[name]
		if e.Offset != next {
			return fmt.Errorf("tensor %q begins at byte %d of the data, want %d", name, e.Offset, next)
		}
		next += e.Bytes
		e.Offset += base
		h.Tensors[name] = e
	}
	if base+next != h.Size {
		return fmt.Errorf("tensors end at byte %d of a file of %d", base+next, h.Size)
	}
	return nil
}
