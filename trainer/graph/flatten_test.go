package graph

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/internal/vision"
	"github.com/uadt-train/uadt-train/trainer"
)

// TestFlattenCoversEveryToken checks, for random batches and limits, that every
// response token is a target once, that its row holds the token before it, and
// that the number of chunks is a multiple of the lanes.
func TestFlattenCoversEveryToken(t *testing.T) {
	w := newWorld(t, small())
	rapid.Check(t, func(t *rapid.T) {
		b := trainer.Batch{Step: 1}
		for q := range rapid.IntRange(1, 6).Draw(t, "groups") {
			g := trainer.Group{ID: fmt.Sprint(q), Prompt: make([]int32, rapid.IntRange(1, 12).Draw(t, "prompt"))}
			for i := range g.Prompt {
				g.Prompt[i] = int32(i + 1)
			}
			for range rapid.IntRange(1, 4).Draw(t, "traces") {
				trace := trainer.Sequence{Tokens: make([]int32, rapid.IntRange(0, 9).Draw(t, "length"))}
				for i := range trace.Tokens {
					trace.Tokens[i] = int32(20 + i)
				}
				g.Traces = append(g.Traces, trace)
			}
			b.Groups = append(b.Groups, g)
		}
		lanes := rapid.IntRange(1, 4).Draw(t, "lanes")
		chunks, err := w.flat.flatten(context.Background(), &b, rapid.IntRange(1, 60).Draw(t, "limit"), lanes)
		if err != nil {
			t.Fatal(err)
		}
		if len(chunks)%lanes != 0 {
			t.Errorf("%d chunks for %d lanes", len(chunks), lanes)
		}
		seen := map[[2]int]bool{}
		for _, c := range chunks {
			checkChunk(t, &b, c, seen)
		}
		for q, g := range b.Groups {
			for i := range g.Traces {
				if !seen[[2]int{q, i}] {
					t.Errorf("group %d trace %d is in no chunk", q, i)
				}
			}
		}
	})
}

// checkChunk checks one chunk against its batch.
func checkChunk(t *rapid.T, b *trainer.Batch, c *chunk, seen map[[2]int]bool) {
	if len(c.feature) != len(c.tokens) || len(c.cos) != len(c.sin) {
		t.Fatalf("%d tokens, %d features, %d cos, %d sin", len(c.tokens), len(c.feature), len(c.cos), len(c.sin))
	}
	for _, ref := range c.traces {
		key := [2]int{ref.group, ref.trace}
		if seen[key] {
			t.Errorf("trace %v twice", key)
		}
		seen[key] = true
		g := b.Groups[ref.group]
		want := g.Traces[ref.trace].Tokens
		if ref.targets.len() != len(want) {
			t.Fatalf("trace %v: %d targets, want %d", key, ref.targets.len(), len(want))
		}
		for i, target := range c.targets[ref.targets.from:ref.targets.to] {
			before := g.Prompt[len(g.Prompt)-1]
			if i > 0 {
				before = want[i-1]
			}
			if got := c.tokens[c.head[target.row]]; target.id != want[i] || got != before {
				t.Errorf("trace %v token %d: predicts %d from %d, want %d from %d", key, i, target.id, got, want[i], before)
			}
		}
	}
	at := 0
	for _, s := range c.segments {
		if s.prompt.from != at {
			t.Errorf("prompt from row %d, want %d", s.prompt.from, at)
		}
		at = s.prompt.to
		for _, trace := range s.traces {
			if trace.from != at {
				t.Errorf("trace from row %d, want %d", trace.from, at)
			}
			at = trace.to
		}
	}
	if at != len(c.tokens) {
		t.Errorf("segments end at row %d of %d", at, len(c.tokens))
	}
}

// TestImagesAreSharedAndPlaced checks that an image is encoded once a chunk and
// that features go to prompt positions only.
func TestImagesAreSharedAndPlaced(t *testing.T) {
	w := newWorld(t, small())
	w.batch.Groups[2].Traces[0].Tokens = []int32{int32(w.config.ImageToken), 3} // as text
	chunks := w.flatten(t, 1000, 1)
	if len(chunks) != 1 {
		t.Fatalf("%d chunks, want 1", len(chunks))
	}
	c := chunks[0]
	if want := 6*4 + 2*6; c.vision.patches != want || len(c.vision.pixels) != 2 {
		t.Errorf("%d patches of %d images, want %d of 2", c.vision.patches, len(c.vision.pixels), want)
	}
	used := map[int32]int{}
	for _, f := range c.feature {
		if f >= 0 {
			used[f]++
		}
	}
	for f := range int32(c.vision.patches / 4) {
		want := 1 // image b is shown once, image a twice
		if f < 6 {
			want = 2
		}
		if used[f] != want {
			t.Errorf("feature %d stands at %d positions, want %d", f, used[f], want)
		}
	}
	last := c.segments[len(c.segments)-1].traces[0]
	if c.feature[last.from] != -1 || c.tokens[last.from] != int32(w.config.ImageToken) {
		t.Errorf("an image pad in a response became feature %d", c.feature[last.from])
	}
}

// counting is an image store that counts.
type counting struct {
	data  []byte
	asked atomic.Int32
	err   error
}

func (c *counting) Get(context.Context, string) ([]byte, error) {
	c.asked.Add(1)
	return c.data, c.err
}

// TestPicturesAreKeptWithinTheLimit checks the cache of preprocessed images.
func TestPicturesAreKeptWithinTheLimit(t *testing.T) {
	ctx := context.Background()
	v := newWorld(t, small()).config.Vision
	dir := t.TempDir()
	image := writeImage(t, dir, 16, 16, 7)
	data, err := folder(dir).Get(ctx, image.Digest)
	if err != nil {
		t.Fatal(err)
	}
	c := vision.DefaultConfig()
	c.PatchSize, c.TemporalPatchSize, c.MergeSize, c.MinPixels, c.MaxPixels = 4, 1, 2, 64, 4096
	store := &counting{data: data}
	kept := &pictures{source: store, workers: 2, limit: 2 * 16 * 48} // two images of 4 x 4 patches
	kept.use(preparation{config: c, window: 16})
	ask := func(p *pictures, digests ...string) map[string]found {
		t.Helper()
		out := p.all(ctx, digests, v)
		for _, d := range digests {
			if at, ok := out[d]; !ok || (at.err == nil && at.picture.grid != (qwenvl.Grid{T: 1, H: 4, W: 4})) {
				t.Fatalf("image %s: %+v", d, at)
			}
		}
		return out
	}
	ask(kept, "a", "a", "b")
	ask(kept, "b", "a")
	if n := store.asked.Load(); n != 2 {
		t.Errorf("asked %d times for two images, want 2", n)
	}
	ask(kept, "c")      // pushes a out
	ask(kept, "b", "c") // are there
	if n := store.asked.Load(); n != 3 {
		t.Errorf("asked %d times for a third, want 3", n)
	}
	ask(kept, "d", "e", "f", "g") // more than the limit at once: all of them are answered
	if kept.size > kept.limit || len(kept.byID) != 2 {
		t.Errorf("%d elements of %d images kept, limit %d", kept.size, len(kept.byID), kept.limit)
	}
	kept.use(preparation{config: c, window: 16})
	if len(kept.byID) != 2 {
		t.Error("the same preparation dropped images")
	}
	kept.use(preparation{config: c, window: 32})
	if len(kept.byID) != 0 || kept.size != 0 {
		t.Errorf("%d images kept after another preparation", len(kept.byID))
	}
	broken := errors.New("disk on fire")
	for want, source := range map[error]Images{broken: &counting{err: broken}, vision.ErrImage: &counting{data: []byte("no image")}} {
		p := &pictures{source: source, workers: 1}
		p.use(preparation{config: c})
		if got := ask(p, "x")["x"].err; !errors.Is(got, want) {
			t.Errorf("error %v, want %v", got, want)
		}
	}
	if got := ask(&pictures{workers: 1}, "x")["x"].err; got == nil || !strings.Contains(got.Error(), "no image store") {
		t.Errorf("no store: %v", got)
	}
}

// TestWeightsAreArranged checks that every tensor has a place of its own, that
// stacks are adjacent and that parts freeze.
func TestWeightsAreArranged(t *testing.T) {
	for _, tie := range []bool{true, false} {
		s := small()
		s.tie = tie
		config, err := qwenvl.ParseConfig(configJSON(s))
		if err != nil {
			t.Fatal(err)
		}
		l := arrange(config)
		owner := make([]string, l.size)
		for _, e := range l.entries {
			rows, cols := flatShape(e.spec.Shape)
			for i := e.offset; i < e.offset+rows*cols; i++ {
				if owner[i] != "" {
					t.Fatalf("%s lies on %s", e.spec.Name, owner[i])
				}
				owner[i] = e.spec.Name
			}
		}
		qkv := l.blocks[l.index["model.layers.1.self_attn.qkv.weight"]]
		if want := (s.heads + 2*s.kv) * s.hidden / s.heads; qkv.rows != want || qkv.cols != s.hidden || !qkv.decay {
			t.Errorf("qkv block is %+v, want %d rows", qkv, want)
		}
		if b := l.blocks[l.index["model.layers.0.self_attn.qkv.bias"]]; b.rows != 1 || b.decay || owner[b.offset] != "model.layers.0.self_attn.q_proj.bias" {
			t.Errorf("qkv bias block is %+v", b)
		}
		for part, prefixes := range map[trainer.ModelPart][]string{trainer.Vision: {"visual.blocks", "visual.patch_embed"}, trainer.Projector: {"visual.merger"}, trainer.Language: {"model.", "lm_head"}} {
			train, err := l.trainable([]trainer.ModelPart{part})
			if err != nil {
				t.Fatal(err)
			}
			for i, b := range l.blocks {
				frozen := false
				for _, p := range prefixes {
					frozen = frozen || strings.HasPrefix(b.name, p)
				}
				if train[i] == frozen {
					t.Errorf("%s frozen: %s trains %v", part, b.name, train[i])
				}
			}
		}
		if _, err := l.trainable([]trainer.ModelPart{"tail"}); err == nil {
			t.Error("an unknown part froze")
		}
	}
}
