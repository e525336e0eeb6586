package checkpoint_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// weights makes a small set of tensors whose values depend on from.
func weights(from float32) map[string]safetensors.Tensor {
	ramp := func(n int, shape ...int) safetensors.Tensor {
		v := make([]float32, n)
		for i := range v {
			v[i] = from + float32(i)/8
		}
		return safetensors.FromFloat32(v, shape...)
	}
	return map[string]safetensors.Tensor{
		"model.embed_tokens.weight": ramp(12, 4, 3),
		"model.norm.weight":         ramp(3, 3),
		"visual.proj.weight":        ramp(24, 2, 3, 2, 2),
	}
}

func contents(from float32) checkpoint.Contents {
	return checkpoint.Contents{
		Files:   map[string][]byte{"config.json": []byte(`{"model_type":"qwen2_5_vl"}`), "tokenizer.json": []byte(`{}`)},
		Tensors: weights(from),
	}
}

func write(t *testing.T, dir string, c checkpoint.Contents) string {
	t.Helper()
	digest, err := checkpoint.Write(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func open(t *testing.T, dir string) *checkpoint.Model {
	t.Helper()
	m, err := checkpoint.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// names lists the files of a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	for _, limit := range []int64{0, 1, 60, 100, 1 << 30} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "a", "b")
			c := contents(1)
			c.ShardBytes = limit
			digest := write(t, dir, c)
			m := open(t, dir)
			if string(m.Config()) != `{"model_type":"qwen2_5_vl"}` || m.GenerationConfig() != nil {
				t.Errorf("config %s, generation config %s", m.Config(), m.GenerationConfig())
			}
			if want := []string{"model.embed_tokens.weight", "model.norm.weight", "visual.proj.weight"}; !slices.Equal(m.Names(), want) {
				t.Errorf("names %v", m.Names())
			}
			got, err := m.Float32("model.embed_tokens.weight", 4, 3)
			if err != nil || len(got) != 12 || got[0] != 1 || got[11] != 1+11./8 {
				t.Errorf("embedding %v, %v", got, err)
			}
			if _, shape, ok := m.Info("visual.proj.weight"); !ok || !slices.Equal(shape, []int{2, 3, 2, 2}) {
				t.Errorf("shape %v, %v", shape, ok)
			}
			for _, again := range []int{1, 2} {
				if d, err := m.Digest(); err != nil || d != digest {
					t.Errorf("digest %d is %s, %v; Write said %s", again, d, err, digest)
				}
			}
			if _, err := m.File("tokenizer.json"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestShardsHaveAnIndex(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	c := contents(0)
	c.ShardBytes = 1
	write(t, dir, c)
	want := []string{"config.json", "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
		"model-00003-of-00003.safetensors", "model.safetensors.index.json", "tokenizer.json"}
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("files %v", got)
	}
	// The index has what transformers reads from it.
	index, err := os.ReadFile(filepath.Join(dir, "model.safetensors.index.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"total_size": 156`, `"model.norm.weight": "model-00002-of-00003.safetensors"`} {
		if !strings.Contains(string(index), part) {
			t.Errorf("index lacks %s:\n%s", part, index)
		}
	}
}

func TestDigestIsOfTheContent(t *testing.T) {
	a := checkpoint.Digest(weights(0))
	// printf "a\nF32\n1\n4\n\x00\x00\x80\x3f" | sha256sum
	one := map[string]safetensors.Tensor{"a": safetensors.FromFloat32([]float32{1}, 1)}
	if got, want := checkpoint.Digest(one), "48cfe2c202832b361ba15b6e8e943f9ece0df5ab7b791d889541665ab3fc81fc"; got != want {
		t.Errorf("digest of one tensor is %s, want %s", got, want)
	}
	if checkpoint.Digest(weights(0)) != a {
		t.Error("the digest is not stable")
	}
	for what, change := range map[string]func(map[string]safetensors.Tensor){
		"value": func(m map[string]safetensors.Tensor) {
			m["model.norm.weight"] = safetensors.FromFloat32([]float32{0, 0, 0}, 3)
		},
		"shape": func(m map[string]safetensors.Tensor) {
			x := m["model.embed_tokens.weight"]
			x.Shape = []int{3, 4}
			m["model.embed_tokens.weight"] = x
		},
		"name": func(m map[string]safetensors.Tensor) {
			m["model.norm.bias"] = m["model.norm.weight"]
			delete(m, "model.norm.weight")
		},
		"type": func(m map[string]safetensors.Tensor) {
			x := m["model.norm.weight"]
			x.DType = safetensors.I32
			m["model.norm.weight"] = x
		},
		"missing": func(m map[string]safetensors.Tensor) { delete(m, "model.norm.weight") },
	} {
		m := weights(0)
		change(m)
		if checkpoint.Digest(m) == a {
			t.Errorf("another %s has the same digest", what)
		}
	}
}

func TestReplacingInPlace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	old := write(t, dir, contents(0))
	reader := open(t, dir)
	extra := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(extra, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	updated := write(t, dir, checkpoint.Contents{Tensors: weights(5)})
	if updated == old {
		t.Fatal("nothing changed")
	}
	// Who had the old weights open goes on reading them.
	if v, err := reader.Float32("model.norm.weight"); err != nil || v[0] != 0 {
		t.Errorf("open model reads %v, %v", v, err)
	}
	if v, err := open(t, dir).Float32("model.norm.weight"); err != nil || v[0] != 5 {
		t.Errorf("new model reads %v, %v", v, err)
	}
	if data, err := os.ReadFile(extra); err != nil || string(data) != "mine" {
		t.Errorf("other file: %q, %v", data, err)
	}
	// From one file to shards and back, nothing of the old layout stays.
	sharded := checkpoint.Contents{Tensors: weights(6), ShardBytes: 1}
	if write(t, dir, sharded) != checkpoint.Digest(weights(6)) {
		t.Error("digest of shards differs")
	}
	if slices.Contains(names(t, dir), checkpoint.WeightsFile) {
		t.Errorf("files %v", names(t, dir))
	}
	write(t, dir, checkpoint.Contents{Tensors: weights(7)})
	if got, want := names(t, dir), []string{"config.json", "model.safetensors", "notes.txt", "tokenizer.json"}; !slices.Equal(got, want) {
		t.Errorf("files %v, want %v", got, want)
	}
}

func TestSideFilesAreCarriedAlong(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	write(t, dir, contents(0))
	for name, text := range map[string]string{"chat_template.jinja": "x", ".hidden": "x", "adapter.safetensors": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	files, err := open(t, dir).SideFiles()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for name := range files {
		got = append(got, name)
	}
	slices.Sort(got)
	if want := []string{"chat_template.jinja", "config.json", "tokenizer.json"}; !slices.Equal(got, want) {
		t.Errorf("side files %v, want %v", got, want)
	}
}

func TestManyReadAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	digest := write(t, dir, contents(2))
	m := open(t, dir)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for _, name := range m.Names() {
				if v, err := m.Float32(name); err != nil || v[0] != 2 {
					t.Errorf("%s: %v, %v", name, v, err)
				}
			}
			if d, err := m.Digest(); d != digest || err != nil {
				t.Errorf("digest %s, %v", d, err)
			}
		})
	}
	group.Wait()
}

func TestHalfPrecision(t *testing.T) {
	// Ties go to the even neighbour: 1 + 2^-8 lies between 1 and 1 + 2^-7.
	values := []float32{1, 1 + 1./256, 1 + 3./256, -0.1, 65504}
	tensor, err := checkpoint.FromFloat32(safetensors.BF16, values, 5)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "m")
	c := contents(0)
	c.Tensors = map[string]safetensors.Tensor{"x": tensor}
	write(t, dir, c)
	m := open(t, dir)
	if dtype, _, _ := m.Info("x"); dtype != safetensors.BF16 {
		t.Errorf("element type %s", dtype)
	}
	got, err := m.Float32("x", 5)
	if want := []float32{1, 1, 1 + 4./256, -0.10009765625, 65536}; err != nil || !slices.Equal(got, want) {
		t.Errorf("read %v, %v, want %v", got, err, want)
	}
	if _, err := checkpoint.FromFloat32(safetensors.I32, values, 5); err == nil {
		t.Error("an integer type was accepted")
	}
	if _, err := checkpoint.FromFloat32(safetensors.F32, values, 2, 3); err == nil {
		t.Error("5 values were accepted as [2 3]")
	}
}

func TestTensorErrorsNameThePlace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	c := contents(0)
	c.Tensors["ids"] = safetensors.FromInt64([]int64{1}, 1)
	write(t, dir, c)
	m := open(t, dir)
	for _, test := range []struct {
		name  string
		shape []int
		is    error
		text  string
	}{
		{"model.norm.weight", []int{4}, checkpoint.ErrShape, "wrong shape [3], want [4]"},
		{"model.norm.weight", []int{1, 3}, checkpoint.ErrShape, "wrong shape [3], want [1 3]"},
		{"lm_head.weight", []int{4}, checkpoint.ErrMissingTensor, "not in the checkpoint"},
		{"ids", nil, nil, "element type is I64"},
	} {
		_, err := m.Float32(test.name, test.shape...)
		var typed *checkpoint.TensorError
		if !errors.As(err, &typed) || typed.Name != test.name || typed.Dir != dir || (test.is != nil && !errors.Is(err, test.is)) ||
			!strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s%v: %v", test.name, test.shape, err)
		}
	}
	if m.Has("lm_head.weight") || !m.Has("ids") {
		t.Error("Has is wrong")
	}
}
