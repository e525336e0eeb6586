package safetensors

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// lazily makes lazy tensors of those of f.
func lazily(f File) map[string]Lazy {
	out := map[string]Lazy{}
	for name, t := range f.Tensors {
		out[name] = Lazy{t.DType, t.Shape, func() ([]byte, error) { return t.Data, nil }}
	}
	return out
}

func TestLazyWritesTheSameBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := File{Metadata: map[string]string{"format": "pt"}, Tensors: map[string]Tensor{}}
		for range rapid.IntRange(0, 6).Draw(t, "tensors") {
			n := rapid.IntRange(0, 5).Draw(t, "n")
			values := make([]float32, n)
			for i := range values {
				values[i] = rapid.Float32().Draw(t, "value")
			}
			name := rapid.StringMatching(`[a-z]{1,3}`).Draw(t, "name")
			if rapid.Bool().Draw(t, "half") {
				f.Tensors[name] = ToBF16(values, n)
			} else {
				f.Tensors[name] = FromFloat32(values, 1, n)
			}
		}
		want, err := Encode(f)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := WriteLazy(&got, f.Metadata, lazily(f)); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Fatalf("got\n%q (%v)\nwant\n%q", got.Bytes(), err, want)
		}
	})
}

// watched counts the bytes that were written.
type watched struct{ n int }

func (w *watched) Write(p []byte) (int, error) {
	w.n += len(p)
	return len(p), nil
}

// TestLazyHoldsOneTensor checks that a tensor is written before the next one is
// read.
func TestLazyHoldsOneTensor(t *testing.T) {
	var w watched
	var at []int
	tensors := map[string]Lazy{}
	for _, name := range []string{"a", "b", "c"} {
		tensors[name] = Lazy{F32, []int{4}, func() ([]byte, error) {
			at = append(at, w.n)
			return make([]byte, 16), nil
		}}
	}
	if err := WriteLazy(&w, nil, tensors); err != nil {
		t.Fatal(err)
	}
	if len(at) != 3 || at[1] != at[0]+16 || at[2] != at[1]+16 {
		t.Errorf("tensors were read when %v bytes had been written", at)
	}
}

func TestLazyRefuses(t *testing.T) {
	broken := errors.New("broken")
	read := func(n int, err error) func() ([]byte, error) {
		return func() ([]byte, error) { return make([]byte, n), err }
	}
	for name, c := range map[string]struct {
		tensor  Lazy
		words   string
		written bool // the header was
	}{
		"a failing read": {Lazy{F32, []int{2}, read(0, broken)}, `reading tensor "x": broken`, true},
		"too few bytes":  {Lazy{F32, []int{2}, read(4, nil)}, "4 bytes of data for F32[2]", true},
		"a type":         {Lazy{"F7", []int{2}, read(8, nil)}, "unknown element type", false},
		"a shape":        {Lazy{F32, []int{-2}, read(8, nil)}, "bad shape", false},
		"too many bytes": {Lazy{F64, []int{math.MaxInt / 4}, read(8, nil)}, "bad shape", false},
	} {
		var out bytes.Buffer
		err := WriteLazy(&out, nil, map[string]Lazy{"x": c.tensor})
		if err == nil || !strings.Contains(err.Error(), c.words) || out.Len() > 0 != c.written {
			t.Errorf("%s: %v, %d bytes written", name, err, out.Len())
		}
	}
	if err := WriteLazy(io.Discard, nil, map[string]Lazy{metadataKey: {F32, []int{0}, read(0, nil)}}); err == nil {
		t.Error("the name of the metadata is taken")
	}
	path := filepath.Join(t.TempDir(), "x")
	err := WriteLazyFile(path, nil, map[string]Lazy{"x": {F32, []int{2}, read(0, broken)}})
	if _, stat := os.Stat(path); !errors.Is(err, broken) || !errors.Is(stat, os.ErrNotExist) {
		t.Errorf("%v, and the file: %v", err, stat)
	}
}
