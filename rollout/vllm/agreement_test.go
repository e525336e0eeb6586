//go:build vllm

package vllm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/uadt-train/uadt-train/rollout"
)

// noise is a picture of random blocks, of a size that its seed decides.
func noise(t *testing.T, seed uint64) picture {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 7))
	width, height := 40+rng.IntN(120), 40+rng.IntN(120)
	canvas := image.NewRGBA(image.Rect(0, 0, width, height))
	for y := 0; y < height; y += 9 {
		for x := 0; x < width; x += 9 {
			c := color.RGBA{uint8(rng.IntN(256)), uint8(rng.IntN(256)), uint8(rng.IntN(256)), 255}
			for dy := range 9 {
				for dx := range 9 {
					canvas.Set(x+dx, y+dy, c)
				}
			}
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, canvas); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	return picture{hex.EncodeToString(sum[:]), b.Bytes()}
}

// TestRealAgreesWithNative: over 64 prompts with images the native engine and
// stock vLLM see the same prompt tokens, choose the same greedy tokens, and give
// log-probabilities and top-20 entropies within 1e-4 nats, under first one and
// then other weights.
func TestRealAgreesWithNative(t *testing.T) {
	const prompts, tolerance = 64, 1e-4
	var album pictures
	for i := range prompts + 16 {
		album = append(album, noise(t, uint64(i)))
	}
	stock, offer := realFleet(t, album)
	_, weights := realServer(t)
	native, err := NewFleet(Options{Servers: []string{nativeServer(t, weights[0])}, Images: album})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := native.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	for version := range 2 {
		var jobs []rollout.Job
		for i := range prompts {
			parts := []rollout.Part{{Text: fmt.Sprintf("Item %d: which lesion is shown?", i)}, {Image: &rollout.Image{Digest: album[i].digest}}}
			if i%4 == 0 {
				parts = append(parts, rollout.Part{Image: &rollout.Image{Digest: album[prompts+i/4].digest}})
			}
			jobs = append(jobs, rollout.Job{
				ID: rollout.JobID(fmt.Sprintf("agree-%d-%d", version, i)), Policy: offer(version).Policy,
				Question: rollout.Question{ID: fmt.Sprint(i), Messages: []rollout.Message{{Role: "user", Parts: parts}}},
				Sampling: rollout.Sampling{Traces: 1, TopP: 1, MaxTokens: 24, TopLogprobs: 20},
			})
		}
		answers := make([][2]rollout.Group, prompts)
		for side, fleet := range []*Fleet{stock, native} {
			if _, err := fleet.Adopt(ctx, offer(version)); err != nil {
				t.Fatal(err)
			}
			var group errgroup.Group
			for i, job := range jobs {
				group.Go(func() (err error) {
					answers[i][side], err = fleet.Sample(ctx, job)
					return err
				})
			}
			if err := group.Wait(); err != nil {
				t.Fatal(err)
			}
		}
		logprobs, entropies := 0.0, 0.0
		for i, pair := range answers {
			a, b := pair[0].Traces[0], pair[1].Traces[0]
			if !slices.Equal(pair[0].PromptTokens, pair[1].PromptTokens) {
				t.Errorf("version %d, prompt %d: %d prompt tokens, native %d", version, i, len(pair[0].PromptTokens), len(pair[1].PromptTokens))
				continue
			}
			// vLLM holds back bytes at the end that are not a whole character yet; a
			// fresh model ends in such bytes all the time.
			left, right := strings.TrimRight(a.Text, "\uFFFD"), strings.TrimRight(b.Text, "\uFFFD")
			if !slices.Equal(a.Tokens, b.Tokens) || left != right || a.Finish != b.Finish {
				t.Errorf("version %d, prompt %d: greedy %v %q, native %v %q", version, i, a.Tokens, a.Text, b.Tokens, b.Text)
				continue
			}
			for k := range a.Tokens {
				logprobs = max(logprobs, math.Abs(float64(a.Logprobs[k]-b.Logprobs[k])))
				entropies = max(entropies, math.Abs(float64(a.TopKEntropy[k]-b.TopKEntropy[k])))
			}
		}
		t.Logf("version %d: log-probabilities differ by at most %.2g, entropies by %.2g nats", version, logprobs, entropies)
		if logprobs > tolerance || entropies > tolerance {
			t.Errorf("version %d: log-probabilities differ by %.2g, entropies by %.2g nats, want at most %g", version, logprobs, entropies, tolerance)
		}
	}
}
