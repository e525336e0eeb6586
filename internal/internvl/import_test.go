package internvl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

func requireError(t *testing.T, err, want error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if want != nil && !errors.Is(err, want) {
		t.Errorf("%q does not wrap %q", err, want)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func importInto(t *testing.T, s *source, target string, shard int64) Result {
	t.Helper()
	r, err := Import(t.Context(), Options{Source: s.dir, Target: target, ShardBytes: shard})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// imported imports s and opens what was written.
func imported(t *testing.T, s *source) (*checkpoint.Model, Result) {
	t.Helper()
	r := importInto(t, s, s.target(), 0)
	m, err := checkpoint.Open(s.target())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m, r
}

// TestNamesAndRows writes some of the mapping down once more, by hand.
func TestNamesAndRows(t *testing.T) {
	s := newSource(t, goodConfig)
	m, r := imported(t, s)
	const from, to = "vision_model.encoder.layers.1.", "vision_tower.encoder.layer.1."
	for target, original := range map[string]string{
		"vision_tower.embeddings.cls_token":                          "vision_model.embeddings.class_embedding",
		"vision_tower.embeddings.position_embeddings":                "vision_model.embeddings.position_embedding",
		"vision_tower.embeddings.patch_embeddings.projection.weight": "vision_model.embeddings.patch_embedding.weight",
		to + "lambda_1":                                    from + "ls1",
		to + "lambda_2":                                    from + "ls2",
		to + "layernorm_before.weight":                     from + "norm1.weight",
		to + "layernorm_after.bias":                        from + "norm2.bias",
		to + "attention.projection_layer.weight":           from + "attn.proj.weight",
		to + "mlp.fc1.weight":                              from + "mlp.fc1.weight",
		to + "mlp.fc2.bias":                                from + "mlp.fc2.bias",
		"multi_modal_projector.layer_norm.bias":            "mlp1.0.bias",
		"multi_modal_projector.linear_1.weight":            "mlp1.1.weight",
		"multi_modal_projector.linear_2.weight":            "mlp1.3.weight",
		"language_model.model.layers.0.mlp.up_proj.weight": "language_model.model.layers.0.mlp.up_proj.weight",
		"language_model.lm_head.weight":                    "language_model.lm_head.weight",
	} {
		got, err := m.Tensor(target)
		if err != nil {
			t.Error(err)
		} else if !reflect.DeepEqual(got, s.tensors[original]) {
			t.Errorf("%s is not %s", target, original)
		}
	}
	for i, part := range []string{"q_proj", "k_proj", "v_proj"} {
		for suffix, shape := range map[string][]int{".weight": {4, 4}, ".bias": {4}} {
			whole := s.tensors[from+"attn.qkv"+suffix].Data
			got, err := m.Tensor(to + "attention." + part + suffix)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(whole) / 3; !bytes.Equal(got.Data, whole[i*n:(i+1)*n]) || !reflect.DeepEqual(got.Shape, shape) {
				t.Errorf("%s%s is not the rows of its own", part, suffix)
			}
		}
	}
	if len(m.Names()) != r.Tensors || r.Tensors != len(s.tensors)+2*r.Fused || r.Fused != 4 {
		t.Errorf("%d tensors from %d, %d fused", r.Tensors, len(s.tensors), r.Fused)
	}
	if digest, err := m.Digest(); err != nil || digest != r.Digest {
		t.Errorf("digest %s, want %s (%v)", digest, r.Digest, err)
	}
}

func decode(t *testing.T, m *checkpoint.Model, name string) (out map[string]any) {
	t.Helper()
	data, err := m.File(name)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestFiles(t *testing.T) {
	m, r := imported(t, newSource(t, goodConfig))
	words, err := tokenizer.Open(m.Dir())
	if err != nil {
		t.Fatal(err)
	}
	id := func(token string) any {
		n, ok := words.ID(token)
		if !ok {
			t.Errorf("no token %s", token)
		}
		return float64(n)
	}
	c := decode(t, m, "config.json")
	text, vision := c["text_config"].(map[string]any), c["vision_config"].(map[string]any)
	processor := decode(t, m, "processor_config.json")
	images := processor["image_processor"].(map[string]any)
	ends := decode(t, m, "generation_config.json")
	for _, k := range []struct {
		in   map[string]any
		key  string
		want any
	}{
		{c, "model_type", "internvl"}, {c, "image_token_id", id("<IMG_CONTEXT>")}, {c, "image_seq_length", 4.0},
		{c, "tie_word_embeddings", false}, {c, "dtype", "float32"}, {c, "downsample_ratio", 0.5},
		{text, "eos_token_id", id("<|im_end|>")}, {text, "pad_token_id", id("<|endoftext|>")}, {text, "rope_theta", 1e6},
		{text, "rope_scaling", map[string]any{"type": "dynamic", "rope_type": "dynamic", "factor": 2.0}},
		{vision, "layer_norm_eps", 1e-6}, {vision, "use_qk_norm", false}, {vision, "attention_bias", true},
		{vision, "image_size", []any{8.0, 8.0}},
		{processor, "image_seq_length", 4.0}, {images, "max_patches", 12.0}, {images, "image_mean", []any{0.485, 0.456, 0.406}},
		{ends, "eos_token_id", id("<|im_end|>")},
	} {
		if !reflect.DeepEqual(k.in[k.key], k.want) {
			t.Errorf("%s is %v, want %v", k.key, k.in[k.key], k.want)
		}
	}
	if ids := words.Encode("the<box>"); len(ids) != 3 || ids[0] != 256 {
		t.Errorf("encoded to %v", ids)
	}
	if words.Size() != 257+len(added)+1 || id("<video>") != float64(words.Size()-1) || !r.MadeTokenizer || r.Vocab != 290 {
		t.Errorf("%d ids, %+v", words.Size(), r)
	}
	template, err := m.File("chat_template.jinja")
	if err != nil || !strings.Contains(string(template), "<IMG_CONTEXT>") {
		t.Errorf("chat template %q (%v)", template, err)
	}
}

// TestStaticTiles checks that a model that never cut images does not begin to.
func TestStaticTiles(t *testing.T) {
	m, r := imported(t, newSource(t, edited(t, `"dynamic_image_size": true`, `"dynamic_image_size": false`)))
	images := decode(t, m, "processor_config.json")["image_processor"].(map[string]any)
	if images["max_patches"] != 1.0 || images["min_patches"] != 1.0 || r.MaxTiles != 1 {
		t.Errorf("%v, %+v", images, r)
	}
}

func TestTiedAndWithoutBias(t *testing.T) {
	text := strings.NewReplacer(`"tie_word_embeddings": false`, `"tie_word_embeddings": true`, `"qkv_bias": true`, `"qkv_bias": false`).Replace(goodConfig)
	m, r := imported(t, newSource(t, text))
	if m.Has("language_model.lm_head.weight") || r.Fused != 2 || decode(t, m, "config.json")["tie_word_embeddings"] != true {
		t.Errorf("%+v: %v", r, m.Names())
	}
}

// TestTakesOverTokenizer gives the source the tokenizer.json of an import.
func TestTakesOverTokenizer(t *testing.T) {
	s := newSource(t, goodConfig)
	m, _ := imported(t, s)
	want, err := m.File("tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, "tokenizer.json", string(want))
	s.remove(t, "vocab.json")
	r := importInto(t, s, s.target()+"-2", 0)
	got, err := os.ReadFile(filepath.Join(s.target()+"-2", "tokenizer.json"))
	if err != nil || r.MadeTokenizer || !bytes.Equal(got, want) {
		t.Errorf("%+v, %v: another tokenizer.json", r, err)
	}
}

// TestSameTwice imports one source again, and its weights dealt over shards into
// shards: the same digest, and without shards the same bytes of every file.
func TestSameTwice(t *testing.T) {
	s := newSource(t, goodConfig)
	first := importInto(t, s, s.target(), 0)
	second := importInto(t, s, s.target()+"-2", 0)
	if first != second {
		t.Errorf("%+v, then %+v", first, second)
	}
	for name, data := range readAll(t, s.target()) {
		if !bytes.Equal(data, readAll(t, s.target()+"-2")[name]) {
			t.Errorf("%s differs", name)
		}
	}
	s.writeWeights(t, 3)
	dealt := importInto(t, s, s.target()+"-3", 2000)
	files := readAll(t, s.target()+"-3")
	if dealt != first || files["model.safetensors.index.json"] == nil || files["model.safetensors"] != nil {
		t.Errorf("%+v from shards, %+v from one file, %d files", dealt, first, len(files))
	}
}

func readAll(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files[path], err = os.ReadFile(filepath.Join(dir, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestExistingTargets(t *testing.T) {
	s := newSource(t, goodConfig)
	for name, make := range map[string]func(string) error{
		"directory":   func(path string) error { return os.Mkdir(path, 0o755) },
		"file":        func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"broken link": func(path string) error { return os.Symlink("nowhere", path) },
	} {
		target := filepath.Join(t.TempDir(), "there")
		if err := make(target); err != nil {
			t.Fatal(err)
		}
		_, err := Import(t.Context(), Options{Source: s.dir, Target: target})
		requireError(t, err, ErrExists, target)
		if _, err := os.Lstat(target); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBrokenOff stops an import, and takes its source away under it, after the
// first tensor.
func TestBrokenOff(t *testing.T) {
	s := newSource(t, goodConfig)
	weights := filepath.Join(s.dir, "model.safetensors")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for name, c := range map[string]struct {
		first func() error
		want  error
	}{
		"cancelled": {func() error { cancel(); return nil }, context.Canceled},
		"truncated": {func() error { return os.Truncate(weights, 5000) }, nil},
	} {
		calls := 0
		o := Options{Source: s.dir, Target: s.target(), Progress: func(done, total int64) {
			calls++
			if done >= total {
				t.Errorf("%s: %d of %d bytes", name, done, total)
			}
			if err := c.first(); err != nil {
				t.Error(err)
			}
		}}
		use := t.Context()
		if c.want != nil {
			use = ctx
		}
		_, err := Import(use, o)
		requireError(t, err, c.want, "reading tensor")
		if calls != 1 && c.want != nil {
			t.Errorf("%s: %d tensors were read", name, calls)
		}
		s.requireAlone(t)
		s.writeWeights(t, 1)
	}
}

func TestProgressEndsAtAll(t *testing.T) {
	s := newSource(t, goodConfig)
	var last, all int64
	r, err := Import(t.Context(), Options{Source: s.dir, Target: s.target(), Progress: func(done, total int64) {
		if done <= last {
			t.Errorf("%d after %d", done, last)
		}
		last, all = done, total
	}})
	if err != nil || last != all || all != r.Bytes {
		t.Errorf("%d of %d bytes, %d written (%v)", last, all, r.Bytes, err)
	}
}

// limited makes the test binary import the directory that it names, into files
// of a few kilobytes at most, and print the error.
const limited = "UADT_TEST_IMPORT"

func TestMain(m *testing.M) {
	if dir := os.Getenv(limited); dir != "" {
		fmt.Println(importLimited(dir))
		return
	}
	os.Exit(m.Run())
}

func importLimited(dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 15000, Max: 15000}); err != nil {
		return err
	}
	_, err := Import(context.Background(), Options{Source: dir, Target: dir + "-hf"})
	return err
}

// TestFullDisk imports in a process whose files are limited, as a disk limits
// them that is about to be full.
func TestFullDisk(t *testing.T) {
	s := newSource(t, goodConfig)
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), limited+"="+s.dir)
	said, err := child.CombinedOutput()
	if err != nil || !strings.Contains(string(said), "model.safetensors") || !strings.Contains(string(said), syscall.EFBIG.Error()) {
		t.Errorf("%s (%v)", said, err)
	}
	s.requireAlone(t)
}

func TestUnwritableParent(t *testing.T) {
	s := newSource(t, goodConfig)
	_, err := Import(t.Context(), Options{Source: s.dir, Target: filepath.Join(s.dir, "config.json", "below")})
	requireError(t, err, syscall.ENOTDIR)
}

func TestBadTensors(t *testing.T) {
	const norm, qkv = "mlp1.0.weight", "vision_model.encoder.layers.0.attn.qkv.weight"
	for name, c := range map[string]struct {
		spoil func(map[string]safetensors.Tensor)
		words []string
	}{
		"missing":     {func(all map[string]safetensors.Tensor) { delete(all, norm); delete(all, qkv) }, []string{"missing", norm, qkv}},
		"extra":       {func(all map[string]safetensors.Tensor) { all["mlp2.0.weight"] = all[norm] }, []string{"unexpected", "mlp2.0.weight"}},
		"a shape":     {func(all map[string]safetensors.Tensor) { all[qkv] = safetensors.FromFloat32(make([]float32, 32), 8, 4) }, []string{qkv, "[8 4], want [12 4]"}},
		"a type":      {func(all map[string]safetensors.Tensor) { all[norm] = safetensors.FromInt32(make([]int32, 16)) }, []string{norm, "I32"}},
		"LoRA's name": {func(all map[string]safetensors.Tensor) { all["language_model.base_model.x"] = all[norm] }, []string{"base_model"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource(t, goodConfig)
			c.spoil(s.tensors)
			s.writeWeights(t, 1)
			s.refuse(t, ErrTensors, c.words...)
		})
	}
}

// TestManyBadTensors checks that an error stays readable.
func TestManyBadTensors(t *testing.T) {
	s := newSource(t, goodConfig)
	s.writeShard(t, "model.safetensors", nil)
	_, err := Import(t.Context(), Options{Source: s.dir, Target: s.target()})
	requireError(t, err, ErrTensors, "missing", "more")
	if n := strings.Count(err.Error(), "\n"); n > maxNamed+4 {
		t.Errorf("%d lines: %s", n, err)
	}
}

func TestTruncatedShard(t *testing.T) {
	s := newSource(t, goodConfig)
	s.writeWeights(t, 3)
	path := filepath.Join(s.dir, shardFile(1, 3))
	info, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, info.Size()-4)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.refuse(t, safetensors.ErrFormat, shardFile(1, 3))
	s.remove(t, shardFile(1, 3))
	s.refuse(t, os.ErrNotExist, shardFile(1, 3))
}
