package micro_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/micro"
	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
	"github.com/uadt-train/uadt-train/internal/vision"
)

var corpus = []string{"three drusen, three drusen, two exudates", "three drusen are here"}

func initialise(t *testing.T, o micro.Options) (dir, digest string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "m")
	digest, err := micro.Init(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return dir, digest
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

func TestADirectoryIsComplete(t *testing.T) {
	dir, digest := initialise(t, micro.Options{Corpus: corpus})
	for _, name := range []string{"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json",
		"tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "model.safetensors"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := open(t, dir)
	if got, err := m.Digest(); err != nil || got != digest {
		t.Errorf("digest %s, %v, want %s", got, err, digest)
	}
	tok, err := tokenizer.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tokenizer.OpenTemplate(dir); err != nil {
		t.Error(err)
	}
	settings, err := m.File("preprocessor_config.json")
	if err != nil {
		t.Fatal(err)
	}
	if c, err := vision.ParseConfig(settings); err != nil || c.MinPixels != 3136 || c.MaxPixels != 12544 {
		t.Errorf("image settings %+v, %v", c, err)
	}
	// 56 tensors, as measured with transformers; tied, so no lm_head.
	if n := len(m.Names()); n != 56 || m.Has("lm_head.weight") {
		t.Errorf("%d tensors", n)
	}
	if _, err := m.Float32("model.embed_tokens.weight", tok.Size(), 64); err != nil {
		t.Error(err)
	}
	var config struct {
		Vocab  int   `json:"vocab_size"`
		Image  int32 `json:"image_token_id"`
		Tied   bool  `json:"tie_word_embeddings"`
		Vision struct {
			Full []int `json:"fullatt_block_indexes"`
		} `json:"vision_config"`
		Rope struct {
			Type     string `json:"type"`
			Sections []int  `json:"mrope_section"`
		} `json:"rope_scaling"`
	}
	if err := json.Unmarshal(m.Config(), &config); err != nil {
		t.Fatal(err)
	}
	pad, _ := tok.ID(tokenizer.ImagePad)
	if config.Vocab != tok.Size() || config.Image != pad || !config.Tied || fmt.Sprint(config.Vision.Full) != "[1]" ||
		config.Rope.Type != "mrope" || fmt.Sprint(config.Rope.Sections) != "[4 6 6]" {
		t.Errorf("config %+v", config)
	}
}

func TestTheSpreadOfTheWeights(t *testing.T) {
	dir, _ := initialise(t, micro.Options{Corpus: corpus, Seed: 4})
	m := open(t, dir)
	for _, name := range m.Names() {
		values, err := m.Float32(name)
		if err != nil {
			t.Fatal(err)
		}
		var sum, squares float64
		for _, v := range values {
			sum += float64(v)
			squares += float64(v) * float64(v)
		}
		n := float64(len(values))
		mean, spread := sum/n, math.Sqrt(squares/n-sum/n*sum/n)
		_, shape, _ := m.Info(name)
		wantMean, want := 0.0, 0.0
		switch {
		case strings.HasSuffix(name, ".bias"):
		case len(shape) == 1:
			wantMean = 1
		case strings.Contains(name, "embed_tokens"):
			want = 0.3
		default:
			fan := 1
			for _, d := range shape[1:] {
				fan *= d
			}
			want = 1 / math.Sqrt(float64(fan))
		}
		// Five standard errors of mean and spread.
		if math.Abs(mean-wantMean) > 5*want/math.Sqrt(n) || math.Abs(spread-want) > 5*want/math.Sqrt(2*n) {
			t.Errorf("%s: mean %v, spread %v, want %v, %v", name, mean, spread, wantMean, want)
		}
	}
}

func TestTheSeedDecides(t *testing.T) {
	_, a := initialise(t, micro.Options{Corpus: corpus, Seed: 1})
	_, b := initialise(t, micro.Options{Corpus: corpus, Seed: 1})
	_, c := initialise(t, micro.Options{Corpus: corpus, Seed: 2})
	if a != b || a == c {
		t.Errorf("digests %s, %s, %s", a, b, c)
	}
	// A tensor does not depend on what else there is.
	one, _ := initialise(t, micro.Options{Corpus: corpus, Seed: 1, Layers: 1, Untied: true})
	two, _ := initialise(t, micro.Options{Corpus: corpus, Seed: 1})
	const name = "model.layers.0.mlp.up_proj.weight"
	x, errX := open(t, one).Float32(name, 192, 64)
	y, errY := open(t, two).Float32(name, 192, 64)
	if errX != nil || errY != nil || x[0] != y[0] || x[12287] != y[12287] {
		t.Errorf("%v, %v", errX, errY)
	}
}

func TestOtherSizes(t *testing.T) {
	dir, _ := initialise(t, micro.Options{Corpus: corpus, Hidden: 96, Heads: 3, MLP: 100, Layers: 1, VisionDepth: 1,
		VisionHidden: 32, VisionHeads: 2, VisionMLP: 30, Untied: true, DType: safetensors.BF16, Vocab: 280})
	m := open(t, dir)
	for name, shape := range map[string][]int{
		"lm_head.weight":                         {280, 96},
		"model.layers.0.self_attn.q_proj.weight": {96, 96},
		"model.layers.0.self_attn.k_proj.bias":   {32},
		"model.layers.0.mlp.down_proj.weight":    {96, 100},
		"visual.patch_embed.proj.weight":         {32, 3, 2, 14, 14},
		"visual.blocks.0.attn.qkv.weight":        {96, 32},
		"visual.blocks.0.mlp.down_proj.weight":   {32, 30},
		"visual.merger.mlp.0.weight":             {128, 128},
		"visual.merger.mlp.2.weight":             {96, 128},
	} {
		if _, err := m.Float32(name, shape...); err != nil {
			t.Error(err)
		}
		if dtype, _, _ := m.Info(name); dtype != safetensors.BF16 {
			t.Errorf("%s is %s", name, dtype)
		}
	}
}

func TestBadOptionsAreReportedTogether(t *testing.T) {
	parent := t.TempDir()
	for _, test := range []struct {
		o    micro.Options
		want []string
	}{
		{micro.Options{Layers: -1, MLP: -2}, []string{"layers is -1", "mlp is -2"}},
		{micro.Options{Hidden: 65, KVHeads: 2, Heads: 3}, []string{"65 is no multiple of 3", "3 heads are no multiple of 2"}},
		{micro.Options{Hidden: 32}, []string{"head size is 16"}},
		{micro.Options{MropeSections: []int{4, 4, 4}}, []string{"[4 4 4] must be 3 with sum 16"}},
		{micro.Options{MropeSections: []int{17, -1, 0}}, []string{"-1 is negative"}},
		{micro.Options{VisionHidden: 60, VisionHeads: 8, Vocab: 100}, []string{"60 is no multiple of 8", "vocabulary is 100, want at least 272"}},
		{micro.Options{MinPixels: 10_000, MaxPixels: 5000, DType: "I64"}, []string{"10000 are above", `"I64"`}},
	} {
		_, err := micro.Init(filepath.Join(parent, "m"), test.o)
		for _, part := range test.want {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%v lacks %q", err, part)
			}
		}
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) != 0 {
		t.Errorf("left behind %v, %v", entries, err)
	}
}

func TestNothingIsOverwritten(t *testing.T) {
	dir := t.TempDir() // empty: may be filled
	if _, err := micro.Init(dir, micro.Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := micro.Init(dir, micro.Options{}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("written again: %v", err)
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := micro.Init(file, micro.Options{}); err == nil {
		t.Error("a file was overwritten")
	}
}
