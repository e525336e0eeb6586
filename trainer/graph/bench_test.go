package graph

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// quick are the sizes of the goal "native speed": about 380k parameters.
func quick() tinySizes {
	return tinySizes{vocab: 400, hidden: 64, layers: 2, heads: 2, kv: 1, inter: 192, vDepth: 2, vHidden: 64, vHeads: 4, vInter: 128, patch: 14, temporal: 2, window: 112, tie: true}
}

// benchBatch is groups of traces on one image of 9 tokens: prompts of 28
// tokens, responses of 20, so that prompt and response have 48.
func benchBatch(t testing.TB, dir string, groups, traces int) trainer.Batch {
	t.Helper()
	config := writeModel(t, filepath.Join(dir, "model"), quick(), 3)
	r := rand.New(rand.NewPCG(1, 1))
	words := func(n int) []int32 {
		out := make([]int32, n)
		for i := range out {
			out[i] = 2 + r.Int32N(390)
		}
		return out
	}
	b := trainer.Batch{Step: 1}
	for q := range groups {
		g := trainer.Group{ID: fmt.Sprint(q), Prompt: imagePrompt(config, 9, words(6), words(11)),
			Images: []rollout.Image{writeImage(t, filepath.Join(dir, "images"), 84, 84, q%256)}}
		for range traces {
			g.Traces = append(g.Traces, trainer.Sequence{Tokens: words(20)})
		}
		b.Groups = append(b.Groups, g)
	}
	return b
}

// benchAdvantages asks for an nll update, which costs what any other does.
func benchAdvantages(b trainer.Batch) trainer.Advantages {
	return trainer.Advantages{Options: trainer.StepOptions{Loss: trainer.NLL, Aggregation: trainer.TokenMean, Temperature: 1, LearningRate: 1e-4,
		Denominators: trainer.CountDenominators(b.Groups, 20, nil)}}
}

// BenchmarkStep measures every call and prints one JSON line each: groups of 8
// on one image as in RL, and records with an image of their own as in SFT.
func BenchmarkStep(b *testing.B) {
	for _, shape := range [][2]int{{16, 8}, {48, 8}, {64, 1}} {
		benchShape(b, shape[0], shape[1])
	}
}

func benchShape(b *testing.B, groups, traces int) {
	dir := b.TempDir()
	batch := benchBatch(b, dir, groups, traces)
	backend, err := New(Options{WorkDir: dir, Images: folder(filepath.Join(dir, "images"))})
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	if err := backend.Begin(ctx, trainer.Stage{Name: "bench", Model: filepath.Join(dir, "model")}); err != nil {
		b.Fatal(err)
	}
	advantages, version := benchAdvantages(batch), 0
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	load := func() { must(backend.Load(ctx, batch)) }
	score := func() {
		_, err := backend.Score(ctx, batch.Step, trainer.ScoreOptions{Temperature: 1})
		must(err)
	}
	step := func() {
		_, err := backend.Step(ctx, batch.Step, advantages)
		must(err)
		batch.Step++
	}
	publish := func() {
		_, err := backend.Publish(ctx, rollout.Policy{Version: version})
		must(err)
		version++
	}
	load()
	score()
	step() // graphs are built
	for _, phase := range []struct {
		name         string
		before, work func()
	}{{"load", nil, load}, {"score", nil, score}, {"step", load, step}, {"publish", nil, publish}} {
		b.Run(fmt.Sprintf("%s/rows=%dx%d", phase.name, groups, traces), func(b *testing.B) {
			for range b.N {
				if phase.before != nil {
					b.StopTimer()
					phase.before()
					b.StartTimer()
				}
				phase.work()
			}
			line := map[string]any{"bench": "graph/" + phase.name, "groups": groups, "traces": traces, "tokens_per_row": 48, "seconds": b.Elapsed().Seconds() / float64(b.N),
				"runs": b.N, "procs": runtime.GOMAXPROCS(0), "heap_bytes": heapBytes()}
			must(json.NewEncoder(os.Stdout).Encode(line))
		})
	}
	must(backend.Close())
}
