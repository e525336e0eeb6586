package checkpoint

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"sort"
	"strings"

	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// The digest of weights is SHA-256, lower-case hex, over all tensors in the
// byte order of their names, each as
//
//	name \n dtype \n d0,d1,... \n number of bytes \n bytes
//
// with the dtype spelt as in safetensors (F32, BF16), numbers in decimal, and
// the bytes little-endian and row-major as stored. So it does not depend on
// file names, shards, header order or metadata, and it does depend on the
// element type.

// writeHeader adds what precedes the bytes of one tensor.
func writeHeader(h hash.Hash, name string, dtype safetensors.DType, shape []int, size int64) {
	dims := make([]string, len(shape))
	for i, d := range shape {
		dims[i] = fmt.Sprint(d)
	}
	fmt.Fprintf(h, "%s\n%s\n%s\n%d\n", name, dtype, strings.Join(dims, ","), size)
}

// Digest names tensors by content; see the top of this file for the exact bytes.
func Digest(tensors map[string]safetensors.Tensor) string {
	names := make([]string, 0, len(tensors))
	for name := range tensors {
		names = append(names, name)
	}
	sort.Strings(names)
	h := sha256.New()
	for _, name := range names {
		t := tensors[name]
		writeHeader(h, name, t.DType, t.Shape, int64(len(t.Data)))
		h.Write(t.Data)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Digest names the weights by content, as the function Digest does, reading
// every tensor once in small pieces. The result is kept.
func (m *Model) Digest() (string, error) {
	m.digestOnce.Do(func() { m.digest, m.digestErr = m.computeDigest() })
	return m.digest, m.digestErr
}

func (m *Model) computeDigest() (string, error) {
	h := sha256.New()
	for _, name := range m.Names() {
		at := m.tensors[name]
		writeHeader(h, name, at.entry.DType, at.entry.Shape, at.entry.Bytes)
		n, err := io.Copy(h, io.NewSectionReader(at.file, at.entry.Offset, at.entry.Bytes))
		if err == nil && n < at.entry.Bytes {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return "", &TensorError{m.dir, name, fmt.Errorf("reading %d bytes: %w", at.entry.Bytes, err)}
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
