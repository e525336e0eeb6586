package graph

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
)

// TestConformance runs the suite of the seam on a tiny model with images.
func TestConformance(t *testing.T) {
	dir := t.TempDir()
	model := filepath.Join(dir, "model")
	config := writeModel(t, model, small(), 3)
	images := []rollout.Image{writeImage(t, filepath.Join(dir, "images"), 16, 24, 90), writeImage(t, filepath.Join(dir, "images"), 8, 16, 200)}
	trainertest.Run(t, trainertest.Setup{
		Model: model, Digest: digestOf(t, model),
		Open: func(t *testing.T) trainertest.Trainer {
			made, err := New(Options{WorkDir: t.TempDir(), Images: folder(filepath.Join(dir, "images")), ChunkRows: 64})
			if err != nil {
				t.Fatal(err)
			}
			return trainertest.Trainer{Backend: made, Keeper: made}
		},
		Groups: func(step int) []trainer.Group {
			r := rand.New(rand.NewPCG(uint64(step), 2))
			words := func(n int) []int32 {
				out := make([]int32, n)
				for i := range out {
					out[i] = 2 + r.Int32N(30)
				}
				return out
			}
			groups := make([]trainer.Group, 4)
			for q := range groups {
				g := trainer.Group{ID: fmt.Sprintf("s%d-g%d", step, q), Prompt: words(5)}
				if q < 3 {
					g.Images = images[q%2 : q%2+1]
					g.Prompt = imagePrompt(config, []int{6, 2}[q%2], words(2), words(3))
				}
				for k := range 3 { // as long in every step: the suite's budgets are those of step 1
					g.Traces = append(g.Traces, trainer.Sequence{Tokens: words(3 + (5*q+2*k)%6)})
				}
				groups[q] = g
			}
			return groups
		},
	})
}
