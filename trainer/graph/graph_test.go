package graph

import (
	"context"
	"encoding/json"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/internal/vision"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// tinySizes are the sizes of a test model.
type tinySizes struct {
	vocab, hidden, layers, heads, kv, inter int
	vDepth, vHidden, vHeads, vInter         int
	patch, temporal, window                 int
	tie                                     bool
}

func small() tinySizes {
	return tinySizes{vocab: 40, hidden: 16, layers: 2, heads: 2, kv: 1, inter: 12, vDepth: 2, vHidden: 8, vHeads: 2, vInter: 10, patch: 4, temporal: 1, window: 16, tie: true}
}

// configJSON is the config.json of a test model.
func configJSON(s tinySizes) []byte {
	half := s.hidden / s.heads / 2
	data, err := json.Marshal(map[string]any{
		"architectures": []string{"Qwen2_5_VLForConditionalGeneration"}, "model_type": "qwen2_5_vl",
		"hidden_act": "silu", "hidden_size": s.hidden, "intermediate_size": s.inter, "max_position_embeddings": 512,
		"num_attention_heads": s.heads, "num_hidden_layers": s.layers, "num_key_value_heads": s.kv,
		"rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_scaling": map[string]any{"type": "mrope", "mrope_section": []int{half - 2*(half*3/8), half * 3 / 8, half * 3 / 8}},
		"tie_word_embeddings": s.tie, "vocab_size": s.vocab, "torch_dtype": "float32",
		"image_token_id": s.vocab - 2, "video_token_id": s.vocab - 1, "vision_start_token_id": s.vocab - 4, "vision_end_token_id": s.vocab - 3,
		"bos_token_id": 0, "eos_token_id": 1,
		"vision_config": map[string]any{"depth": s.vDepth, "hidden_act": "silu", "hidden_size": s.vHidden, "intermediate_size": s.vInter,
			"num_heads": s.vHeads, "in_chans": 3, "out_hidden_size": s.hidden, "patch_size": s.patch, "spatial_merge_size": 2, "temporal_patch_size": s.temporal,
			"window_size": s.window, "fullatt_block_indexes": []int{s.vDepth - 1}},
	})
	if err != nil {
		panic(err)
	}
	return data
}

// randomWeights draws weights that keep activations of order one.
func randomWeights(l *layoutOfWeights, seed uint64) []float32 {
	r := rand.New(rand.NewPCG(seed, 1))
	values := make([]float32, l.size)
	for _, e := range l.entries {
		rows, cols := flatShape(e.spec.Shape)
		for i := range rows * cols {
			v := r.NormFloat64()
			switch {
			case len(e.spec.Shape) > 1:
				v /= math.Sqrt(float64(cols))
				if e.spec.Name == qwenvl.NameEmbedding {
					v = r.NormFloat64()
				}
			case filepath.Ext(e.spec.Name) == ".bias":
				v *= 0.2
			default:
				v = 1 + 0.2*v
			}
			values[e.offset+i] = float32(v)
		}
	}
	return values
}

// tinyPatches is a random image of a grid.
func tinyPatches(r *rand.Rand, c qwenvl.VisionConfig, h, w int) vision.Patches {
	p := vision.Patches{Grid: [3]int{1, h, w}, Pixels: make([]float32, h*w*c.PatchDim())}
	for i := range p.Pixels {
		p.Pixels[i] = float32(r.NormFloat64())
	}
	return p
}

// world is a test model with two images and a batch of three groups.
type world struct {
	config  qwenvl.Config
	weights *layoutOfWeights
	values  []float32
	flat    *flattener
	batch   trainer.Batch
}

func newWorld(t testing.TB, s tinySizes) *world {
	t.Helper()
	config, err := qwenvl.ParseConfig(configJSON(s))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{config: config, weights: arrange(config)}
	w.values = randomWeights(w.weights, 7)
	r := rand.New(rand.NewPCG(5, 5))
	store := &pictures{workers: 1, byID: map[string]*picture{
		"a": newPicture(config.Vision, tinyPatches(r, config.Vision, 6, 4)),
		"b": newPicture(config.Vision, tinyPatches(r, config.Vision, 2, 6)),
	}}
	w.flat = newFlattener(config, store)
	word := func() int32 { return 2 + r.Int32N(int32(s.vocab)-8) }
	group := func(id string, images []string, lengths ...int) trainer.Group {
		g := trainer.Group{ID: id, Prompt: []int32{word(), word()}}
		for _, digest := range images {
			g.Images = append(g.Images, rollout.Image{Digest: digest})
			g.Prompt = append(g.Prompt, int32(config.VisionStart))
			for range store.byID[digest].grid.Tokens(config.Vision.MergeSize) {
				g.Prompt = append(g.Prompt, int32(config.ImageToken))
			}
			g.Prompt = append(g.Prompt, int32(config.VisionEnd))
		}
		g.Prompt = append(g.Prompt, word(), word(), word())
		for _, n := range lengths {
			trace := trainer.Sequence{}
			for range n {
				trace.Tokens = append(trace.Tokens, word())
			}
			g.Traces = append(g.Traces, trace)
		}
		return g
	}
	w.batch = trainer.Batch{Step: 1, Groups: []trainer.Group{
		group("one", []string{"a"}, 4, 1, 3), group("two", []string{"b", "a"}, 2, 5), group("three", nil, 3),
	}}
	return w
}

// flatten cuts the batch.
func (w *world) flatten(t testing.TB, limit, count int) []*chunk {
	t.Helper()
	chunks, err := w.flat.flatten(context.Background(), &w.batch, limit, count)
	if err != nil {
		t.Fatal(err)
	}
	return chunks
}

// weightsOf gives every target fixed pseudo-random weights for its
// log-probability and entropy.
func weightsOf(ref traceRef, i int) (float64, float64) {
	x := float64(ref.group*131+ref.trace*17+i*7) + 0.5
	return math.Sin(x), 0.3 * math.Cos(1.7*x)
}

// testLoss is a fixed linear form of all log-probabilities and entropies.
func testLoss(c *chunk, out, coef []float32) (float64, error) {
	total := 0.0
	for _, ref := range c.traces {
		for i := range ref.targets.len() {
			a, b := weightsOf(ref, i)
			at := 2 * (ref.targets.from + i)
			coef[at], coef[at+1] = float32(a), float32(b)
			total += a*float64(out[at]) + b*float64(out[at+1])
		}
	}
	return total, nil
}

func all(n int) []bool {
	out := make([]bool, n)
	for i := range out {
		out[i] = true
	}
	return out
}

// TestGradientsAgainstFiniteDifferences checks the derivative along random
// directions in every block, by central differences.
func TestGradientsAgainstFiniteDifferences(t *testing.T) {
	for name, change := range map[string]func(*tinySizes){
		"tied": func(*tinySizes) {}, "untied": func(s *tinySizes) { s.tie = false; s.kv = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			s := small()
			change(&s)
			w := newWorld(t, s)
			h := head{temperature: 0.8, banned: []int32{int32(s.vocab) - 2, int32(s.vocab) - 1}}
			chunks := w.flatten(t, 40, 2)
			l := newLanes(w.config, w.weights, all(len(w.weights.blocks)), 2)
			grad := make([]float32, w.weights.size)
			if err := l.gradients(context.Background(), chunks, w.values, task{h, testLoss}, grad); err != nil {
				t.Fatal(err)
			}
			lossAt := func(values []float32) float64 {
				parts := make([]float64, len(chunks))
				err := l.logprobs(context.Background(), chunks, values, h, func(c *chunk, out []float32) error {
					v, err := testLoss(c, out, make([]float32, len(out)))
					for i := range chunks {
						if chunks[i] == c {
							parts[i] = v
						}
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				sum := 0.0
				for _, p := range parts {
					sum += p
				}
				return sum
			}
			r := rand.New(rand.NewPCG(11, 12))
			for _, b := range w.weights.blocks {
				g := w.weights.of(grad, b)
				size := norm(g)
				if size == 0 {
					t.Errorf("%s: gradient is zero", b.name)
					continue
				}
				// Half along the gradient, half at random, so that the derivative is
				// of the gradient's size and every element takes part.
				direction := make([]float64, len(g))
				want := 0.0
				for i := range direction {
					direction[i] = float64(g[i])/size + r.NormFloat64()/math.Sqrt(float64(len(g)))
					want += direction[i] * float64(g[i])
				}
				const step = 4e-3
				moved := func(sign float64) float64 {
					values := append([]float32(nil), w.values...)
					for i, d := range direction {
						values[b.offset+i] += float32(sign * step * d)
					}
					return lossAt(values)
				}
				got := (moved(1) - moved(-1)) / (2 * step)
				if math.Abs(got-want) > 1e-2*math.Abs(want)+2e-3 {
					t.Errorf("%s: finite difference %.6f, gradient %.6f", b.name, got, want)
				}
			}
		})
	}
}

// TestRunsAreEqual compares the bits of the gradients of fresh graphs, of graphs
// that ran before, and of graphs that grew.
func TestRunsAreEqual(t *testing.T) {
	w := newWorld(t, small())
	for i := range w.batch.Groups { // prompts of different length, so that later chunks need more room
		g := &w.batch.Groups[i]
		for range 15 * i {
			g.Prompt = append(g.Prompt, int32(2+i))
		}
	}
	h := head{temperature: 1}
	chunks := w.flatten(t, 40, 2)
	var first []float32
	grown := newLanes(w.config, w.weights, all(len(w.weights.blocks)), 2)
	for run := range 4 {
		l := grown
		if run%2 == 1 {
			l = newLanes(w.config, w.weights, all(len(w.weights.blocks)), 2)
		}
		grad := make([]float32, w.weights.size)
		if err := l.gradients(context.Background(), chunks, w.values, task{h, testLoss}, grad); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = grad
		}
		for i := range grad {
			if grad[i] != first[i] {
				t.Fatalf("run %d: element %d is %v, first %v", run, i, grad[i], first[i])
			}
		}
	}
}

// TestCutDoesNotChangeValues compares log-probabilities of traces that share
// their prompt's rows with those of traces encoded alone.
func TestCutDoesNotChangeValues(t *testing.T) {
	w := newWorld(t, small())
	h := head{temperature: 1.3}
	l := newLanes(w.config, w.weights, all(len(w.weights.blocks)), 2)
	values := func(limit int) [][][]float32 {
		b := &loaded{batch: w.batch, chunks: w.flatten(t, limit, 2)}
		s := &stage{lanes: l}
		lp, _, err := s.logprobs(context.Background(), b, w.values, h)
		if err != nil {
			t.Fatal(err)
		}
		return lp
	}
	together, alone := values(1000), values(1)
	for q := range together {
		for g := range together[q] {
			for i, v := range together[q][g] {
				if d := math.Abs(float64(v - alone[q][g][i])); d > 1e-5 {
					t.Errorf("group %d trace %d token %d: %v together, %v alone", q, g, i, v, alone[q][g][i])
				}
			}
		}
	}
}

// TestPanicsBecomeErrors runs a chunk that names a token outside of the
// vocabulary, which Load would have refused.
func TestPanicsBecomeErrors(t *testing.T) {
	w := newWorld(t, small())
	chunks := w.flatten(t, 1000, 1)
	chunks[0].tokens[0] = 1 << 20
	l := newLanes(w.config, w.weights, all(len(w.weights.blocks)), 1)
	grad := make([]float32, w.weights.size)
	if err := l.gradients(context.Background(), chunks, w.values, task{head{temperature: 1}, testLoss}, grad); err == nil {
		t.Fatal("no error")
	}
	chunks[0].tokens[0] = 2
	if err := l.gradients(context.Background(), chunks, w.values, task{head{temperature: 1}, testLoss}, grad); err != nil {
		t.Errorf("after a failed run: %v", err)
	}
}
