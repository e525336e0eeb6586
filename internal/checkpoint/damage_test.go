package checkpoint_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// damage is one way to break a directory, and what the error must say.
type damage struct {
	name, want string
	do         func(t *testing.T, dir string)
}

func put(name, text string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func remove(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// cut shortens a file to a share of its length.
func cut(name string, share float64) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err == nil {
			err = os.Truncate(path, int64(float64(info.Size())*share))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestDamagedDirectoriesAreRefused(t *testing.T) {
	for _, d := range []damage{
		{"no config", "config.json", remove("config.json")},
		{"config is a list", "config.json is not a JSON object", put("config.json", "[1]")},
		{"config is null", "config.json is null", put("config.json", "null")},
		{"config cut", "config.json is not a JSON object", put("config.json", `{"a":`)},
		{"generation config broken", "generation_config.json is not", put("generation_config.json", "x")},
		{"no weights", "neither model.safetensors nor", remove("model.safetensors")},
		{"weights empty", "not a safetensors file", put("model.safetensors", "")},
		{"weights cut in the header", "not a safetensors file", cut("model.safetensors", 0.1)},
		{"weights cut in the data", "not a safetensors file", cut("model.safetensors", 0.9)},
		{"weights are text", "not a safetensors file", put("model.safetensors", "version https://git-lfs.github.com/spec/v1\n")},
	} {
		t.Run(d.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "m")
			write(t, dir, contents(0))
			d.do(t, dir)
			expect(t, dir, d.want)
		})
	}
}

func TestDamagedShardsAreRefused(t *testing.T) {
	const index, second = "model.safetensors.index.json", "model-00002-of-00003.safetensors"
	for _, d := range []damage{
		{"index broken", "index.json", put(index, "{")},
		{"index empty", "weight_map is empty", put(index, "{}")},
		{"shard missing", second, remove(second)},
		{"shard cut", second, cut(second, 0.5)},
		{"tensor not in its shard", `tensor "b": not in the checkpoint`, put(index, `{"weight_map":{"b":"`+second+`"}}`)},
		{"path out of the directory", "not a plain name", put(index, `{"weight_map":{"b":"../x.safetensors"}}`)},
		{"absolute path", "not a plain name", put(index, `{"weight_map":{"b":"/etc/passwd"}}`)},
		{"no path", "not a plain name", put(index, `{"weight_map":{"b":""}}`)},
	} {
		t.Run(d.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "m")
			c := contents(0)
			c.ShardBytes = 1
			write(t, dir, c)
			d.do(t, dir)
			expect(t, dir, d.want)
		})
	}
}

func expect(t *testing.T, dir, want string) {
	t.Helper()
	m, err := checkpoint.Open(dir)
	if err == nil {
		t.Fatalf("opened, with tensors %v", m.Names())
	}
	if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %q lacks %q or the directory", err, want)
	}
}

func TestTruncationAfterOpeningIsAnError(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	write(t, dir, contents(0))
	m := open(t, dir)
	cut("model.safetensors", 0.9)(t, dir)
	_, err := m.Float32("visual.proj.weight")
	var typed *checkpoint.TensorError
	if !errors.As(err, &typed) || typed.Name != "visual.proj.weight" {
		t.Errorf("reading gave %v", err)
	}
	if _, err := m.Digest(); !errors.As(err, &typed) {
		t.Errorf("digest gave %v", err)
	}
}

func TestFilesStayInTheDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	write(t, dir, contents(0))
	m := open(t, dir)
	for _, name := range []string{"../m/config.json", "/etc/passwd", ""} {
		if data, err := m.File(name); err == nil {
			t.Errorf("File(%q) read %d bytes", name, len(data))
		}
	}
	if _, err := m.File("nothing.json"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file gave %v", err)
	}
	for _, name := range []string{"../x", "a/b", "model.safetensors", "model.safetensors.index.json",
		"model-00001-of-00002.safetensors", ".", ""} {
		if _, err := checkpoint.Write(dir, checkpoint.Contents{Files: map[string][]byte{name: nil}}); err == nil {
			t.Errorf("side file %q was accepted", name)
		}
	}
}

func TestAFailedWriteLeavesNothing(t *testing.T) {
	parent := t.TempDir()
	c := contents(0)
	c.Tensors["bad"] = safetensors.Tensor{DType: safetensors.F32, Shape: []int{2}, Data: []byte{1}}
	if _, err := checkpoint.Write(filepath.Join(parent, "m"), c); err == nil {
		t.Fatal("a tensor of 1 byte was written as two float32")
	}
	if got := names(t, parent); len(got) != 0 {
		t.Errorf("left behind %v", got)
	}
	// In place: the old weights stay, and no temporary file.
	dir := filepath.Join(parent, "old")
	digest := write(t, dir, contents(0))
	before := names(t, dir)
	if _, err := checkpoint.Write(dir, checkpoint.Contents{Tensors: c.Tensors}); err == nil {
		t.Fatal("written over")
	}
	if got := names(t, dir); !slices.Equal(got, before) {
		t.Errorf("files %v, before %v", got, before)
	}
	if d, err := open(t, dir).Digest(); d != digest || err != nil {
		t.Errorf("old weights: %s, %v", d, err)
	}
	// Where a file stands, no directory is made.
	file := filepath.Join(parent, "file")
	put("file", "x")(t, parent)
	if _, err := checkpoint.Write(file, contents(0)); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("writing over a file gave %v", err)
	}
}

// FuzzOpen opens directories whose config, index and weights are any bytes:
// either an error, or a model all of whose tensors can be read.
func FuzzOpen(f *testing.F) {
	good, err := safetensors.Encode(safetensors.File{Tensors: map[string]safetensors.Tensor{"a": safetensors.FromFloat32([]float32{1, 2}, 2)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("{}"), []byte(`{"weight_map":{"a":"s.safetensors"}}`), good)
	f.Add([]byte("{}"), []byte(`{"weight_map":{"b":"s.safetensors"}}`), good)
	f.Add([]byte("{}"), []byte(`{"weight_map":{"a":"../s"}}`), good)
	f.Add([]byte("[]"), []byte(`{"weight_map":null}`), good[:len(good)-1])
	f.Fuzz(func(t *testing.T, config, index, weights []byte) {
		dir := t.TempDir()
		put("config.json", string(config))(t, dir)
		put(checkpoint.IndexFile, string(index))(t, dir)
		put("s.safetensors", string(weights))(t, dir)
		m, err := checkpoint.Open(dir)
		if err != nil {
			return
		}
		for _, name := range m.Names() {
			tensor, err := m.Tensor(name)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if n := tensor.Len(); n*tensor.DType.Size() != len(tensor.Data) {
				t.Errorf("%s: %d elements in %d bytes", name, n, len(tensor.Data))
			}
		}
		if _, err := m.Digest(); err != nil {
			t.Error(err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
}
