package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// frame builds a file from a header text and data, without any check.
func frame(header string, data []byte) []byte {
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(out, header...), data...)
}

func TestEncodeIsTheReferenceLayout(t *testing.T) {
	got, err := Encode(File{
		Metadata: map[string]string{"b": "2", "a": "1"},
		Tensors: map[string]Tensor{
			"z": FromFloat32([]float32{1}, 1, 1),
			"b": FromBytes([]byte{7, 8, 9}),
			"a": FromInt32([]int32{-1, 2}),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	header := `{"__metadata__":{"a":"1","b":"2"},` +
		`"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]},` +
		`"z":{"dtype":"F32","shape":[1,1],"data_offsets":[8,12]},` +
		`"b":{"dtype":"U8","shape":[3],"data_offsets":[12,15]}}`
	for len(header)%8 != 0 {
		header += " "
	}
	want := frame(header, []byte{255, 255, 255, 255, 2, 0, 0, 0, 0, 0, 0x80, 0x3f, 7, 8, 9})
	if !bytes.Equal(got, want) {
		t.Fatalf("got\n%q\nwant\n%q", got, want)
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := File{Tensors: map[string]Tensor{}}
		if rapid.Bool().Draw(t, "meta") {
			f.Metadata = rapid.MapOfN(rapid.String(), rapid.String(), 1, 4).Draw(t, "metadata")
		}
		dtypes := []DType{F32, F16, BF16, I32, I64, U8, F64, Bool}
		for range rapid.IntRange(0, 6).Draw(t, "tensors") {
			name := rapid.String().Draw(t, "name")
			if name == metadataKey {
				continue
			}
			shape := rapid.SliceOfN(rapid.IntRange(0, 4), 0, 3).Draw(t, "shape")
			if shape == nil {
				shape = []int{}
			}
			tensor := Tensor{DType: rapid.SampledFrom(dtypes).Draw(t, "dtype"), Shape: shape}
			n := tensor.Len() * tensor.DType.Size()
			tensor.Data = rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "data")
			f.Tensors[name] = tensor
		}
		data, err := AppendTo([]byte("kept"), f)
		if err != nil {
			t.Fatal(err)
		}
		if string(data[:4]) != "kept" {
			t.Fatal("AppendTo overwrote the prefix")
		}
		again, err := Encode(f)
		if err != nil || !bytes.Equal(again, data[4:]) {
			t.Fatalf("encoding is not deterministic (%v)", err)
		}
		got, err := Decode(data[4:])
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Tensors) != len(f.Tensors) || len(got.Metadata) != len(f.Metadata) {
			t.Fatalf("got %d tensors and %d metadata, want %d and %d",
				len(got.Tensors), len(got.Metadata), len(f.Tensors), len(f.Metadata))
		}
		for key, value := range f.Metadata {
			if got.Metadata[key] != value {
				t.Fatalf("metadata %q is %q, want %q", key, got.Metadata[key], value)
			}
		}
		for name, want := range f.Tensors {
			have := got.Tensors[name]
			if have.DType != want.DType || !reflect.DeepEqual(have.Shape, want.Shape) || !bytes.Equal(have.Data, want.Data) {
				t.Fatalf("tensor %q: got %v, want %v", name, have, want)
			}
		}
	})
}

func TestDecodeRefuses(t *testing.T) {
	entry := func(name, dtype, shape, offsets string) string {
		return `"` + name + `":{"dtype":"` + dtype + `","shape":` + shape + `,"data_offsets":` + offsets + `}`
	}
	a := entry("a", "U8", "[2]", "[0,2]")
	tests := []struct {
		name, header, want string
		data               []byte
	}{
		{"empty header", ``, "no JSON object", nil},
		{"not JSON", `{"a"`, "header", nil},
		{"array", `[]`, "no JSON object", nil},
		{"trailing bytes", `{} {}`, "after the JSON object", nil},
		{"tensor twice", `{` + a + `,` + a + `}`, `"a" occurs twice`, []byte{1, 2}},
		{"metadata twice", `{"__metadata__":{},"__metadata__":{}}`, "occurs twice", nil},
		{"metadata number", `{"__metadata__":{"a":1}}`, "__metadata__", nil},
		{"unknown field", `{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}}`, "unknown field", nil},
		{"unknown type", `{` + entry("a", "F3", "[2]", "[0,2]") + `}`, `"F3"`, []byte{1, 2}},
		{"no shape", `{"a":{"dtype":"U8","data_offsets":[0,1]}}`, "no shape", []byte{1}},
		{"negative dimension", `{` + entry("a", "U8", "[-2]", "[0,2]") + `}`, "[-2]", []byte{1, 2}},
		{"overflowing shape", `{` + entry("a", "U8", "[4611686018427387904,4]", "[0,0]") + `}`, "4611686018427387904", nil},
		{"size against shape", `{` + entry("a", "F32", "[1]", "[0,2]") + `}`, "2 bytes of data for F32[1]", []byte{1, 2}},
		{"reversed offsets", `{` + entry("a", "U8", "[0]", "[2,0]") + `}`, "data_offsets", []byte{1, 2}},
		{"three offsets", `{` + entry("a", "U8", "[0]", "[0,0,0]") + `}`, "data_offsets", nil},
		{"negative offset", `{` + entry("a", "U8", "[1]", "[-1,0]") + `}`, "data_offsets", nil},
		{"overlap", `{` + a + `,` + entry("b", "U8", "[2]", "[1,3]") + `}`, `"b" begins at byte 1`, []byte{1, 2, 3}},
		{"gap", `{` + a + `,` + entry("b", "U8", "[1]", "[3,4]") + `}`, `"b" begins at byte 3`, []byte{1, 2, 3, 4}},
		{"out of bounds", `{` + a + `}`, "tensors end at byte", []byte{1}},
		{"bytes left over", `{` + a + `}`, "tensors end at byte", []byte{1, 2, 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Decode(frame(tt.header, tt.data))
			if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want ErrFormat with %q", err, tt.want)
			}
		})
	}
	for name, data := range map[string][]byte{
		"short":            {1, 2, 3},
		"header past end":  frame(`{}`, nil)[:9],
		"header over cap":  binary.LittleEndian.AppendUint64(nil, MaxHeader+1),
		"header length -1": binary.LittleEndian.AppendUint64(nil, math.MaxUint64),
	} {
		if _, err := Decode(data); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: got %v, want ErrFormat", name, err)
		}
	}
}

func TestDecodeAliases(t *testing.T) {
	data, err := Encode(File{Tensors: map[string]Tensor{"a": FromBytes([]byte{1, 2})}})
	if err != nil {
		t.Fatal(err)
	}
	f, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-1] = 9
	if f.Tensors["a"].Data[1] != 9 {
		t.Fatal("decoded data does not alias its buffer")
	}
	if cap(f.Tensors["a"].Data) != 2 {
		t.Fatal("an append to a tensor could write into its neighbour")
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, f := range map[string]File{
		"reserved": {Tensors: map[string]Tensor{metadataKey: FromBytes(nil)}},
		"unknown":  {Tensors: map[string]Tensor{"a": {DType: "F3", Shape: []int{}}}},
		"size":     {Tensors: map[string]Tensor{"a": {DType: F32, Shape: []int{2}, Data: make([]byte, 4)}}},
		"negative": {Tensors: map[string]Tensor{"a": {DType: U8, Shape: []int{-1}}}},
		"utf8":     {Tensors: map[string]Tensor{"\xff": FromBytes(nil)}},
	} {
		if _, err := Encode(f); err == nil {
			t.Errorf("%s: no error", name)
		}
		if err := WriteTo(new(bytes.Buffer), f); err == nil {
			t.Errorf("%s: WriteTo gave no error", name)
		}
	}
}

func TestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "model.safetensors")
	f := File{Metadata: map[string]string{"format": "pt"}, Tensors: map[string]Tensor{
		"w": FromFloat32([]float32{1, 2, 3, 4, 5, 6}, 2, 3), "s": FromInt64([]int64{5}),
	}}
	if err := WriteFile(path, f); err != nil {
		t.Fatal(err)
	}
	got, err := ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := got.Tensors["w"].Float32()
	if err != nil || !reflect.DeepEqual(w, []float32{1, 2, 3, 4, 5, 6}) {
		t.Fatalf("w is %v (%v)", w, err)
	}
	h, err := ReadHeader(path)
	if err != nil || h.Metadata["format"] != "pt" || !reflect.DeepEqual(h.Tensors["w"].Shape, []int{2, 3}) {
		t.Fatalf("header is %+v (%v)", h, err)
	}
	data, err := os.ReadFile(path)
	if err != nil || h.Size != int64(len(data)) {
		t.Fatalf("size %d, want %d (%v)", h.Size, len(data), err)
	}
	if e := h.Tensors["w"]; !bytes.Equal(data[e.Offset:e.Offset+e.Bytes], f.Tensors["w"].Data) {
		t.Fatal("header places w wrongly")
	}

	// A write that fails leaves the old file and nothing beside it.
	bad := File{Tensors: map[string]Tensor{"x": {DType: U8, Shape: []int{2}}}}
	if err := WriteFile(path, bad); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("got %v, want an error naming %s", err, path)
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(after, data) {
		t.Fatalf("the old file changed (%v)", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Fatalf("left behind: %v (%v)", entries, err)
	}

	if err := os.WriteFile(path, data[:len(data)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(path); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), path) {
		t.Fatalf("truncated file: got %v", err)
	}
	if _, err := ReadHeader(path); !errors.Is(err, ErrFormat) {
		t.Fatalf("truncated file's header: got %v", err)
	}
}
