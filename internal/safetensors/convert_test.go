package safetensors

import (
	"encoding/binary"
	"math"
	"reflect"
	"testing"
	"unsafe"

	"pgregory.net/rapid"
)

func TestHalfAgainstItsDefinition(t *testing.T) {
	for bits := range 1 << 16 {
		h := uint16(bits)
		got := half(h)
		exponent, fraction := int(h>>10&31), float64(h&1023)
		want := math.Ldexp(1+fraction/1024, exponent-15)
		switch {
		case exponent == 31 && fraction != 0:
			if !math.IsNaN(float64(got)) {
				t.Fatalf("%#04x: got %g, want NaN", h, got)
			}
			continue
		case exponent == 31:
			want = math.Inf(1)
		case exponent == 0:
			want = math.Ldexp(fraction/1024, -14)
		}
		if h>>15 == 1 {
			want = -want
		}
		if float64(got) != want || math.Signbit(float64(got)) != (h>>15 == 1) {
			t.Fatalf("%#04x: got %g, want %g", h, got, want)
		}
	}
}

func TestBF16(t *testing.T) {
	values := []float32{0, 1, -2.5, float32(math.Inf(1)), 1 + 1.0/256, 1 + 3.0/256, math.MaxFloat32}
	want := []float32{0, 1, -2.5, float32(math.Inf(1)), 1, 1 + 4.0/256, float32(math.Inf(1))} // ties go to even
	got, err := ToBF16(values).Float32()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v, want %v (%v)", got, want, err)
	}
	nan := math.Float32frombits(0x7f800001) // its payload lies only in the half that goes
	if got, err := ToBF16([]float32{nan}).Float32(); err != nil || got[0] == got[0] {
		t.Fatalf("NaN became %v (%v)", got, err)
	}
}

func TestBF16RoundsToNearest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.Float32Range(-1e30, 1e30).Draw(t, "v")
		got, err := ToBF16([]float32{v}).Float32()
		if err != nil {
			t.Fatal(err)
		}
		// Half a unit in the last of 8 significant bits.
		if diff := math.Abs(float64(got[0]) - float64(v)); diff > math.Abs(float64(v))/256+math.SmallestNonzeroFloat32*65536 {
			t.Fatalf("%g became %g", v, got[0])
		}
	})
}

func TestViewsCopyWhenMisaligned(t *testing.T) {
	want := []float32{1.5, -2, 3}
	raw := make([]byte, 16+8)
	base := 0
	for uintptr(unsafe.Pointer(&raw[base]))%4 != 0 {
		base++
	}
	for offset := range 4 {
		data := raw[base+offset : base+offset+12]
		for i, v := range want {
			binary.LittleEndian.PutUint32(data[4*i:], math.Float32bits(v))
		}
		got, err := Tensor{DType: F32, Shape: []int{3}, Data: data}.ViewFloat32()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("offset %d: got %v, want %v (%v)", offset, got, want, err)
		}
		aliased := unsafe.Pointer(&got[0]) == unsafe.Pointer(&data[0])
		if aliased != (offset == 0 && nativeLittle) {
			t.Fatalf("offset %d: aliased is %v", offset, aliased)
		}
	}
}

func TestConversionsRefuseOtherTypes(t *testing.T) {
	tensor := FromBytes([]byte{1, 2, 3, 4})
	for name, err := range map[string]error{
		"Float32":     second(tensor.Float32()),
		"Int32":       second(tensor.Int32()),
		"Int64":       second(tensor.Int64()),
		"ViewFloat32": second(tensor.ViewFloat32()),
		"ViewInt32":   second(tensor.ViewInt32()),
	} {
		if err == nil {
			t.Errorf("%s of U8 gave no error", name)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestIntegers(t *testing.T) {
	if got, err := FromInt32([]int32{-7, 8}).Int64(); err != nil || !reflect.DeepEqual(got, []int64{-7, 8}) {
		t.Fatalf("got %v (%v)", got, err)
	}
	if got, err := FromInt64([]int64{-1 << 60}).Int64(); err != nil || got[0] != -1<<60 {
		t.Fatalf("got %v (%v)", got, err)
	}
	if got, err := FromInt32(nil).ViewInt32(); err != nil || len(got) != 0 {
		t.Fatalf("got %v (%v)", got, err)
	}
}

func TestSwapReverses(t *testing.T) {
	dst := make([]byte, 8)
	swap(dst, []byte{1, 2, 3, 4, 5, 6, 7, 8}, 4)
	if !reflect.DeepEqual(dst, []byte{4, 3, 2, 1, 8, 7, 6, 5}) {
		t.Fatalf("got %v", dst)
	}
}
