package qwenvl

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The weights of the tests are drawn by name, by the formula of
// tests/python/make_engine_golden.py, so that no weights need storing.

func splitmix(x uint64) uint64 {
	z := x * 0x9E3779B97F4A7C15
	z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
	z = (z ^ (z >> 27)) * 0x94D049BB133111EB
	return z ^ (z >> 31)
}

// draws returns n numbers in [-0.5, 0.5) of a stream.
func draws(stream uint64, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = float64(splitmix(stream<<32+uint64(i)+1)>>40)/(1<<24) - 0.5
	}
	return out
}

// drawnSource is a Source of such weights; salt makes different models.
type drawnSource struct {
	config Config
	salt   string
}

func (d drawnSource) Names() []string {
	var names []string
	for _, spec := range d.config.Tensors() {
		names = append(names, spec.Name)
	}
	return names
}

func (d drawnSource) Float32(name string, shape ...int) ([]float32, error) {
	n := 1
	for _, s := range shape {
		n *= s
	}
	h := fnv.New32a()
	fmt.Fprint(h, d.salt+name)
	out := make([]float32, n)
	for i, u := range draws(uint64(h.Sum32()), n) {
		switch {
		case strings.Contains(name, "norm") || strings.Contains(name, "ln_q"):
			out[i] = float32(1 + 0.4*u)
		case strings.HasSuffix(name, ".bias"):
			out[i] = float32(0.4 * u)
		default:
			fan := float64(n / shape[0])
			if strings.Contains(name, "embed_tokens") {
				fan = 4
			}
			out[i] = float32(u * (2 * math.Sqrt(3) / math.Sqrt(fan)))
		}
	}
	return out, nil
}

func drawnModel(t testing.TB, config Config, salt string) *Model {
	t.Helper()
	m, err := NewModel(config, drawnSource{config, salt})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func drawnPatches(config Config, grid Grid, stream uint64) []float32 {
	out := make([]float32, grid.Patches()*config.Vision.PatchDim())
	for i, u := range draws(stream, len(out)) {
		out[i] = float32(4 * u)
	}
	return out
}

type goldenFile struct {
	Config     json.RawMessage `json:"config"`
	Grids      [][3]int        `json:"grids"`
	Prompt     []int32         `json:"prompt"`
	Response   []int32         `json:"response"`
	Positions  []Position      `json:"positions"`
	Features   [][]float64     `json:"features"`
	LogitSteps []int           `json:"logit_steps"`
	Logits     [][]float64     `json:"logits"`
	TextLogits []float64       `json:"text_logits"`
	model      *Model
	grids      []Grid
	patches    [][]float32
}

func loadGolden(t testing.TB) *goldenFile {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var g goldenFile
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	config, err := ParseConfig(g.Config)
	if err != nil {
		t.Fatal(err)
	}
	g.model = drawnModel(t, config, "")
	for i, grid := range g.Grids {
		g.grids = append(g.grids, Grid{grid[0], grid[1], grid[2]})
		g.patches = append(g.patches, drawnPatches(config, g.grids[i], uint64(900+i)))
	}
	return &g
}

func worst(got []float32, want []float64) float64 {
	w := 0.0
	for i, x := range want {
		w = max(w, math.Abs(float64(got[i])-x))
	}
	return w
}

func sameBits(a, b []float32) bool {
	return slices.EqualFunc(a, b, func(x, y float32) bool { return math.Float32bits(x) == math.Float32bits(y) })
}
