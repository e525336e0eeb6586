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
	"os"
	"strings"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/rollouttest"
)

// These tests run against one real vLLM server, which scripts/vllm-cpu/serve.sh
// starts. UADT_VLLM_URL is its address and UADT_VLLM_WEIGHTS names at least two
// checkpoint directories of its architecture, separated by colons.
func realServer(t *testing.T) (url string, weights []string) {
	t.Helper()
	url = os.Getenv("UADT_VLLM_URL")
	weights = strings.Split(os.Getenv("UADT_VLLM_WEIGHTS"), ":")
	if url == "" || len(weights) < 2 {
		t.Fatal("UADT_VLLM_URL must be the address of a server and UADT_VLLM_WEIGHTS two or more directories")
	}
	return url, weights
}

// incarnation tells the fleets of this process apart, so that no test meets the
// prefix cache of another.
var incarnation = uint64(time.Now().Unix())

func realFleet(t *testing.T, images Images) (*Fleet, func(version int) rollout.Offer) {
	t.Helper()
	url, weights := realServer(t)
	fleet, err := NewFleet(Options{Servers: []string{url}, ProbeEvery: 100 * time.Millisecond, Images: images})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fleet.Close(); err != nil {
			t.Error(err)
		}
	})
	incarnation++
	mine := incarnation
	digests := make([]string, len(weights))
	for i, path := range weights {
		model, err := checkpoint.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if digests[i], err = model.Digest(); err != nil {
			t.Fatal(err)
		}
	}
	return fleet, func(version int) rollout.Offer {
		i := version % len(weights)
		return rollout.Offer{
			Policy:    rollout.Policy{Incarnation: mine, Version: version, Digest: digests[i]},
			Transport: rollout.ByDirectory, Path: weights[i],
		}
	}
}

func TestRealConformance(t *testing.T) {
	rollouttest.Run(t, func(t *testing.T) rollouttest.Setup {
		fleet, offer := realFleet(t, nil)
		return rollouttest.Setup{
			Fleet: fleet, Tolerance: 1e-4,
			Offer: func(_ *testing.T, version int) rollout.Offer { return offer(version) },
		}
	})
}

// picture is an image of one colour, and a source of itself.
type picture struct {
	digest string
	data   []byte
}

func newPicture(t *testing.T, c color.Color) picture {
	t.Helper()
	canvas := image.NewRGBA(image.Rect(0, 0, 84, 56))
	for y := range 56 {
		for x := range 84 {
			canvas.Set(x, y, c)
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, canvas); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	return picture{hex.EncodeToString(sum[:]), b.Bytes()}
}

type pictures []picture

func (p pictures) Image(_ context.Context, digest string) ([]byte, string, error) {
	for _, one := range p {
		if one.digest == digest {
			return one.data, "image/png", nil
		}
	}
	return nil, "", fmt.Errorf("no image %s", digest)
}

// TestRealWeightsAndImages: an image that the server has seen before is encoded
// by the new weights after a change, banned ids are never sampled, and changing
// back gives the first answers again.
func TestRealWeightsAndImages(t *testing.T) {
	album := pictures{newPicture(t, color.RGBA{200, 40, 20, 255}), newPicture(t, color.RGBA{10, 200, 90, 255})}
	fleet, offer := realFleet(t, album)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	ask := func(version int, banned []int32) rollout.Group {
		o := offer(version)
		if _, err := fleet.Adopt(ctx, o); err != nil {
			t.Fatal(err)
		}
		job := rollout.Job{
			ID: rollout.JobID(fmt.Sprintf("image-%d", version)), Policy: o.Policy,
			Question: rollout.Question{ID: "q", Messages: []rollout.Message{{Role: "user", Parts: []rollout.Part{
				{Text: "Which is red?"},
				{Image: &rollout.Image{Digest: album[0].digest, MediaType: "image/png"}},
				{Image: &rollout.Image{Digest: album[1].digest, MediaType: "image/png"}},
			}}}},
			Sampling: rollout.Sampling{Traces: 4, Temperature: 1, TopP: 1, MaxTokens: 24, Seed: 1 << 20, TopLogprobs: 20, Banned: banned},
		}
		group, err := fleet.Sample(ctx, job)
		if err != nil {
			t.Fatal(err)
		}
		for _, trace := range group.Traces {
			for i, h := range trace.TopKEntropy {
				if h <= 0 || float64(h) > math.Log(512) {
					t.Fatalf("token %d: entropy %v", i, h)
				}
			}
		}
		return group
	}
	versions := len(strings.Split(os.Getenv("UADT_VLLM_WEIGHTS"), ":"))
	first, second := ask(0, nil), ask(1, nil)
	if len(first.PromptTokens) < 20 || fmt.Sprint(first.PromptTokens) != fmt.Sprint(second.PromptTokens) {
		t.Errorf("prompts of %d and %d tokens", len(first.PromptTokens), len(second.PromptTokens))
	}
	if d := math.Abs(float64(first.Traces[0].Logprobs[0] - second.Traces[0].Logprobs[0])); d < 1e-3 {
		t.Errorf("other weights gave log-probabilities that differ by %g only", d)
	}
	again := ask(versions, nil) // the first directory once more
	if again.Traces[0].Tokens[0] != first.Traces[0].Tokens[0] || math.Abs(float64(again.Traces[0].Logprobs[0]-first.Traces[0].Logprobs[0])) > 1e-4 {
		t.Errorf("back to the first weights: token %d at %v, want %d at %v", again.Traces[0].Tokens[0], again.Traces[0].Logprobs[0],
			first.Traces[0].Tokens[0], first.Traces[0].Logprobs[0])
	}
	banned := map[int32]bool{}
	for _, trace := range again.Traces {
		banned[trace.Tokens[0]], banned[trace.Tokens[1]] = true, true
	}
	var ids []int32
	for id := range banned {
		ids = append(ids, id)
	}
	for _, trace := range ask(2*versions, ids).Traces {
		for i, id := range trace.Tokens {
			if banned[id] {
				t.Errorf("token %d is %d, which is banned", i, id)
			}
		}
	}
}
