package safetensors

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"
)

// nativeLittle tells whether this machine stores numbers as the layout does,
// so that a slice of numbers can serve as data without conversion.
var nativeLittle = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// FromFloat32 wraps values as an F32 tensor. The data may alias values, which
// must not change until the tensor has been encoded.
func FromFloat32(values []float32, shape ...int) Tensor {
	return Tensor{DType: F32, Shape: shapeOf(len(values), shape), Data: toBytes(values)}
}

// FromInt32 wraps values as an I32 tensor, as FromFloat32 does.
func FromInt32(values []int32, shape ...int) Tensor {
	return Tensor{DType: I32, Shape: shapeOf(len(values), shape), Data: toBytes(values)}
}

// FromInt64 wraps values as an I64 tensor, as FromFloat32 does.
func FromInt64(values []int64, shape ...int) Tensor {
	return Tensor{DType: I64, Shape: shapeOf(len(values), shape), Data: toBytes(values)}
}

// FromBytes wraps values as a U8 tensor that aliases them.
func FromBytes(values []byte, shape ...int) Tensor {
	return Tensor{DType: U8, Shape: shapeOf(len(values), shape), Data: values}
}

// shapeOf makes a vector's shape when none is given.
func shapeOf(n int, shape []int) []int {
	if len(shape) == 0 {
		return []int{n}
	}
	return shape
}

// Float32 returns the elements of an F32, BF16 or F16 tensor in a fresh slice.
// The conversion is exact: both halves are subsets of float32.
func (t Tensor) Float32() ([]float32, error) {
	switch t.DType {
	case F32:
		return fromBytes[float32](t.Data), nil
	case BF16:
		out := make([]float32, len(t.Data)/2)
		for i := range out {
			out[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(t.Data[2*i:])) << 16)
		}
		return out, nil
	case F16:
		out := make([]float32, len(t.Data)/2)
		for i := range out {
			out[i] = half(binary.LittleEndian.Uint16(t.Data[2*i:]))
		}
		return out, nil
	}
	return nil, fmt.Errorf("element type is %s, want F32, BF16 or F16", t.DType)
}

// Int32 returns the elements of an I32 tensor in a fresh slice.
func (t Tensor) Int32() ([]int32, error) {
	if t.DType != I32 {
		return nil, fmt.Errorf("element type is %s, want I32", t.DType)
	}
	return fromBytes[int32](t.Data), nil
}

// Int64 returns the elements of an I64 or I32 tensor in a fresh slice.
func (t Tensor) Int64() ([]int64, error) {
	switch t.DType {
	case I64:
		return fromBytes[int64](t.Data), nil
	case I32:
		out := make([]int64, len(t.Data)/4)
		for i := range out {
			out[i] = int64(int32(binary.LittleEndian.Uint32(t.Data[4*i:])))
		}
		return out, nil
	}
	return nil, fmt.Errorf("element type is %s, want I64 or I32", t.DType)
}

// ViewFloat32 returns the elements of an F32 tensor without copying where the
// machine and the alignment of the data allow, and a copy otherwise. The
// result must not be written to.
func (t Tensor) ViewFloat32() ([]float32, error) {
	if t.DType != F32 {
		return nil, fmt.Errorf("element type is %s, want F32", t.DType)
	}
	return view[float32](t.Data), nil
}

// ViewInt32 is ViewFloat32 for an I32 tensor.
func (t Tensor) ViewInt32() ([]int32, error) {
	if t.DType != I32 {
		return nil, fmt.Errorf("element type is %s, want I32", t.DType)
	}
	return view[int32](t.Data), nil
}

// ToBF16 rounds values to the nearest bfloat16, ties to even, as a BF16
// tensor. NaN stays NaN.
func ToBF16(values []float32, shape ...int) Tensor {
	data := make([]byte, 2*len(values))
	for i, v := range values {
		bits := math.Float32bits(v)
		if v != v {
			bits |= 1 << 22 // keep it a NaN when the low half goes
		} else {
			bits += 0x7fff + bits>>16&1
		}
		binary.LittleEndian.PutUint16(data[2*i:], uint16(bits>>16))
	}
	return Tensor{DType: BF16, Shape: shapeOf(len(values), shape), Data: data}
}

// half widens an IEEE 754 binary16.
func half(h uint16) float32 {
	sign := uint32(h>>15) << 31
	exponent, fraction := uint32(h>>10&31), uint32(h&1023)
	switch exponent {
	case 0: // zero or subnormal: fraction units of 2^-24, exact in float32
		v := float32(fraction) / (1 << 24)
		return math.Float32frombits(math.Float32bits(v) | sign)
	case 31: // infinity or NaN
		return math.Float32frombits(sign | 0xff<<23 | fraction<<13)
	}
	return math.Float32frombits(sign | (exponent+127-15)<<23 | fraction<<13)
}

// number is an element type that is converted.
type number interface{ float32 | int32 | int64 }

// toBytes views values as little-endian bytes, or converts them where the
// machine is not little-endian.
func toBytes[T number](values []T) []byte {
	if len(values) == 0 {
		return []byte{}
	}
	size := int(unsafe.Sizeof(values[0]))
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&values[0])), len(values)*size)
	if nativeLittle {
		return raw
	}
	out := make([]byte, len(raw))
	swap(out, raw, size)
	return out
}

// fromBytes copies little-endian bytes into numbers.
func fromBytes[T number](data []byte) []T {
	var zero T
	size := int(unsafe.Sizeof(zero))
	out := make([]T, len(data)/size)
	if len(out) == 0 {
		return out
	}
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&out[0])), len(out)*size)
	if nativeLittle {
		copy(raw, data)
	} else {
		swap(raw, data[:len(raw)], size)
	}
	return out
}

// view casts data where it may and copies where it must.
func view[T number](data []byte) []T {
	var zero T
	size := unsafe.Sizeof(zero)
	if len(data) < int(size) {
		return []T{}
	}
	// A byte slice of foreign origin has no promised alignment.
	if !nativeLittle || uintptr(unsafe.Pointer(&data[0]))%unsafe.Alignof(zero) != 0 {
		return fromBytes[T](data)
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&data[0])), len(data)/int(size))
}

// swap reverses the bytes of every element of size bytes.
func swap(dst, src []byte, size int) {
	for i := 0; i < len(src); i += size {
		for j := range size {
			dst[i+j] = src[i+size-1-j]
		}
	}
}
