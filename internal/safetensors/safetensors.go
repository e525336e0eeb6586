// Package safetensors reads and writes the safetensors layout: an unsigned
// 64-bit little-endian header length, a JSON header padded to 8 bytes, and raw
// little-endian tensor data. It is used for checkpoints and for the tensor
// frames of the bus.
//
// It knows neither models nor messages, and does no arithmetic beyond
// converting element types.
package safetensors

import (
	"errors"
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

// Size is the number of bytes of one element, or 0 for an unknown type.
func (d DType) Size() int {
	switch d {
	case F32, I32:
		return 4
	case F16, BF16:
		return 2
	case I64:
		return 8
	case U8:
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

// File is the content of one safetensors file or frame.
type File struct {
	Metadata map[string]string // the "__metadata__" entry; may be nil
	Tensors  map[string]Tensor
}

// ErrFormat is wrapped by every error about bytes that are not a valid file.
var ErrFormat = errors.New("not a safetensors file")
