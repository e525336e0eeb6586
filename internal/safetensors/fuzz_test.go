package safetensors

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzDecode checks that no bytes crash Decode, that what it accepts can be
// written again, and that the second reading is the first.
func FuzzDecode(f *testing.F) {
	good, err := Encode(File{Metadata: map[string]string{"schema": "x"}, Tensors: map[string]Tensor{
		"a": FromFloat32([]float32{1, 2}), "b": FromBytes([]byte{3}), "c": FromInt64(nil),
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(frame(`{}`, nil))
	f.Add(frame(`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{}}`, []byte{1, 2}))
	f.Add(frame(`{"a":{"dtype":"F32","shape":[9223372036854775807,2],"data_offsets":[0,0]}}`, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Decode(data)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error without ErrFormat: %v", err)
			}
			return
		}
		for name, tensor := range file.Tensors {
			if len(tensor.Data) != tensor.Len()*tensor.DType.Size() {
				t.Fatalf("tensor %q: %d bytes for %s%v", name, len(tensor.Data), tensor.DType, tensor.Shape)
			}
			if _, err := tensor.Float32(); err == nil && tensor.DType.Size() > 4 {
				t.Fatalf("tensor %q of %s became float32", name, tensor.DType)
			}
		}
		first, err := Encode(file)
		if err != nil {
			t.Fatalf("cannot write what was read: %v", err)
		}
		again, err := Decode(first)
		if err != nil {
			t.Fatalf("cannot read what was written: %v", err)
		}
		second, err := Encode(again)
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("unstable (%v)", err)
		}
	})
}

// BenchmarkFrame measures a group of 16 x 4096 tokens with three 4-byte fields.
func BenchmarkFrame(b *testing.B) {
	values := make([]float32, 16*4096)
	file := File{Tensors: map[string]Tensor{
		"tokens": FromInt32(make([]int32, 16*4096)), "logprobs": FromFloat32(values), "entropy": FromFloat32(values),
	}}
	data, err := Encode(file)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("encode", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		var buffer []byte
		for b.Loop() {
			if buffer, err = AppendTo(buffer[:0], file); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if _, err := Decode(data); err != nil {
				b.Fatal(err)
			}
		}
	})
}
