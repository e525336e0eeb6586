//go:build pytorch

package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/internal/blob"
	"github.com/uadt-train/uadt-train/internal/micro"
	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// modelKit is a bus, an image server and a micro model, for ranks of PyTorch.
type modelKit struct {
	*kit
	model  string
	digest string
	config qwenvl.Config
	images []rollout.Image
}

// newModelKit makes them all.
func newModelKit(t *testing.T, run string) *modelKit {
	t.Helper()
	k := &modelKit{kit: newBus(t, run)}
	k.model = filepath.Join(t.TempDir(), "model")
	var err error
	k.digest, err = micro.Init(k.model, micro.Options{Vocab: 300, MaxPixels: 64 * 28 * 28, Corpus: []string{"how many drusen are there"}, Seed: 5})
	must(t, err)
	k.config, err = qwenvl.LoadConfig(k.model)
	must(t, err)
	store, err := blob.Open(t.TempDir())
	must(t, err)
	for _, size := range [][2]int{{84, 84}, {168, 112}} {
		digest, err := store.Put(picture(t, size[0], size[1]))
		must(t, err)
		k.images = append(k.images, rollout.Image{Digest: digest, MediaType: "image/png"})
	}
	token, err := blob.NewToken()
	must(t, err)
	server, err := blob.Serve(blob.ServerOptions{Store: store, Token: token})
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if err := server.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	address, err := json.Marshal(map[string]any{"version": 1, "incarnation": 1, "url": server.URL(), "token": token})
	must(t, err)
	_, err = k.conn.Values(run).Announce(t.Context(), "blob", address)
	must(t, err)
	return k
}

func picture(t *testing.T, width, height int) []byte {
	t.Helper()
	img := image.NewRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			img.Set(x, y, color.RGBA{uint8(x * 255 / width), uint8(y * 255 / height), uint8(x * y), 255})
		}
	}
	var buf bytes.Buffer
	must(t, png.Encode(&buf, img))
	return buf.Bytes()
}

// launch describes ranks of the package beside this one.
func (k *modelKit) launch(t *testing.T, python string) Launch {
	t.Helper()
	source, err := filepath.Abs("../pytorch")
	must(t, err)
	l, err := Launch{
		Python: python, Package: source, Bus: k.server.URL(), Work: t.TempDir(), Logs: t.TempDir(), Device: "cpu", Threads: 1,
		Environment: []string{"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "TOKENIZERS_PARALLELISM=false", "GLOO_SOCKET_IFNAME=lo"},
	}.prepare()
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, l.Logs)
		}
	})
	return l
}

// showLogs prints the ends of the ranks' outputs.
func showLogs(t *testing.T, dir string) {
	files, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, f := range files {
		data, _ := os.ReadFile(f)
		t.Logf("%s:\n%s", filepath.Base(f), data[max(0, len(data)-4000):])
	}
}

// groups are those of a step: one image, another, none, none; lengths alike in
// every step.
func (k *modelKit) groups(step int) []trainer.Group {
	r := rand.New(rand.NewPCG(uint64(step), 2))
	words := func(n int) []int32 {
		out := make([]int32, n)
		for i := range out {
			out[i] = 10 + r.Int32N(200)
		}
		return out
	}
	groups := make([]trainer.Group, 4)
	for q := range groups {
		g := trainer.Group{ID: fmt.Sprintf("s%d-g%d", step, q), Prompt: words(5)}
		if q < 2 {
			g.Images = k.images[q : q+1]
			g.Prompt = append(g.Prompt, int32(k.config.VisionStart))
			for range []int{9, 24}[q] {
				g.Prompt = append(g.Prompt, int32(k.config.ImageToken))
			}
			g.Prompt = append(append(g.Prompt, int32(k.config.VisionEnd)), words(3)...)
		}
		for i := range 3 {
			g.Traces = append(g.Traces, trainer.Sequence{Tokens: words(3 + (5*q+2*i)%6)})
		}
		groups[q] = g
	}
	return groups
}

// step loads, scores and applies one step.
func (k *modelKit) step(t *testing.T, made *Trainer, n int) trainer.Report {
	t.Helper()
	groups := k.groups(n)
	plan, err := trainer.NewPlan(groups, made.options.Ranks, 0)
	must(t, err)
	must(t, made.Load(t.Context(), trainer.Batch{Step: n, Groups: groups, Plan: plan}))
	_, err = made.Score(t.Context(), n, trainer.ScoreOptions{Temperature: 1})
	must(t, err)
	report, err := made.Step(t.Context(), n, trainer.Advantages{Values: ones(groups), Options: trainer.StepOptions{
		Loss: trainer.PPO, ClipLow: 0.2, ClipHigh: 0.2, Aggregation: trainer.TokenMean, Temperature: 1, LearningRate: 1e-3,
		Denominators: trainer.CountDenominators(groups, 64, nil),
	}})
	must(t, err)
	return report
}
