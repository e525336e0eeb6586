// Package safetensors reads and writes the safetensors layout: an unsigned
// 64-bit little-endian header length, a JSON header padded to 8 bytes, and raw
// little-endian tensor data. It is used for checkpoints and for the tensor
// frames of the bus.
//
// It knows neither models nor messages, and does no arithmetic beyond
// converting element types. It maps no file into memory and shards nothing.
package safetensors

import (
	"errors"
	"math"
)

// DType is an element type by its safetensors name.
type DType string

// The element types that checkpoints and frames use.
const (
	F32  DType = "F32"
	F16  DType = "F16"
	BF16 DType = "BF16"
	I32  DType = "I32"
	I64  DType = "I64"
	U8   DType = "U8"
)

// Element types that are carried through but not converted.
const (
	F64    DType = "F64"
	I8     DType = "I8"
	I16    DType = "I16"
	U16    DType = "U16"
	U32    DType = "U32"
	U64    DType = "U64"
	Bool   DType = "BOOL"
	F8E4M3 DType = "F8_E4M3"
	F8E5M2 DType = "F8_E5M2"
)

// Size is the number of bytes of one element, or 0 for an unknown type.
func (d DType) Size() int {
	switch d {
	case I64, F64, U64:
		return 8
	case F32, I32, U32:
		return 4
	case F16, BF16, I16, U16:
		return 2
	case U8, I8, Bool, F8E4M3, F8E5M2:
		return 1
	}
	return 0
}

// Tensor is one named array. Data is little-endian and row-major; a decoded
// tensor's Data aliases the buffer it was decoded from.
type Tensor struct {
	DType DType
	Shape []int
	Data  []byte
}

// Len is the number of elements that the shape spans: 1 for a scalar (empty
// shape), -1 when a dimension is negative or the product overflows.
func (t Tensor) Len() int { return elements(t.Shape) }

// File is the content of one safetensors file or frame.
type File struct {
	Metadata map[string]string // the "__metadata__" entry; may be nil
	Tensors  map[string]Tensor
}

// ErrFormat is wrapped by every error about bytes that are not a valid file.
var ErrFormat = errors.New("not a safetensors file")

// MaxHeader is the longest header that is read, in bytes: the cap of the
// reference implementation.
const MaxHeader = 100_000_000

// metadataKey is the header entry that is no tensor.
const metadataKey = "__metadata__"

// elements multiplies shape, or answers -1 for a negative dimension or an
// overflow.
func elements(shape []int) int {
	total := 1
	for _, dim := range shape {
		if dim < 0 || (dim > 0 && total > math.MaxInt/dim) {
			return -1
		}
		total *= dim
	}
	return total
}
