//go:build pytorch && vllm

package remote

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/vllm"
	"github.com/uadt-train/uadt-train/trainer"
)

// agreement is the largest difference between log-probabilities of the same
// weights that came to the server by two ways.
const agreement = 1e-4

// pixels is the budget of an image, which the kit's prompts are made for.
const pixels = 64 * 28 * 28

// onVLLM is a trainer of one rank and a real server on CPU with the engine of
// tests/python/vllm_gloo. UADT_VLLM_URL is the server's address, and the first
// directory in UADT_VLLM_WEIGHTS holds a checkpoint of its architecture.
type onVLLM struct {
	*modelKit
	fleet *vllm.Fleet
	album map[string][]byte
}

// Image implements vllm.Images.
func (o *onVLLM) Image(_ context.Context, digest string) ([]byte, string, error) {
	if data := o.album[digest]; data != nil {
		return data, "image/png", nil
	}
	return nil, "", fmt.Errorf("no image %s", digest)
}

func newOnVLLM(t *testing.T) *onVLLM {
	url, weights := os.Getenv("UADT_VLLM_URL"), strings.Split(os.Getenv("UADT_VLLM_WEIGHTS"), ":")
	if url == "" || weights[0] == "" {
		t.Fatal("UADT_VLLM_URL must be the address of a server and UADT_VLLM_WEIGHTS a directory of its architecture")
	}
	return onServer(t, "broadcasts", url, weights[0])
}

// onServer is a kit for a server that was started on model.
func onServer(t *testing.T, run, url, model string) *onVLLM {
	o := &onVLLM{modelKit: newModelKit(t, run), album: map[string][]byte{}}
	o.model = model
	var err error
	o.config, err = qwenvl.LoadConfig(o.model)
	must(t, err)
	for i, size := range [][2]int{{84, 84}, {168, 112}} {
		o.album[o.images[i].Digest] = picture(t, size[0], size[1])
	}
	o.fleet, err = vllm.NewFleet(vllm.Options{Servers: []string{url}, Images: o, MaxPixels: pixels, TransferTimeout: time.Minute})
	must(t, err)
	t.Cleanup(func() {
		if err := o.fleet.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

// adopt brings an offer live and answers the same question, with both images,
// under it.
func (o *onVLLM) adopt(t *testing.T, offer rollout.Offer) []rollout.Trace {
	t.Helper()
	return o.answer(t, offer).Traces
}

func (o *onVLLM) answer(t *testing.T, offer rollout.Offer) rollout.Group {
	t.Helper()
	adopted, err := o.fleet.Adopt(t.Context(), offer)
	must(t, err)
	t.Logf("policy %s by %s: %.3f s", offer.Policy, offer.Transport, adopted.Seconds)
	group, err := o.fleet.Sample(t.Context(), rollout.Job{
		ID: "question", Policy: offer.Policy,
		Question: rollout.Question{ID: "q", Messages: []rollout.Message{{Role: "user", Parts: []rollout.Part{
			{Text: "How many drusen are there?"}, {Image: &o.images[0]}, {Image: &o.images[1]},
		}}}},
		Sampling: rollout.Sampling{Traces: 4, Temperature: 1, TopP: 1, MaxTokens: 16, Seed: 1 << 20},
	})
	must(t, err)
	return group
}

// apart is the largest difference of log-probabilities between two sets of
// traces, infinite where they have other tokens.
func apart(a, b []rollout.Trace) float64 {
	d := 0.0
	for i := range a {
		if fmt.Sprint(a[i].Tokens) != fmt.Sprint(b[i].Tokens) {
			return math.Inf(1)
		}
		for j, x := range a[i].Logprobs {
			d = max(d, math.Abs(float64(x-b[i].Logprobs[j])))
		}
	}
	return d
}

// TestBroadcastToVLLM: weights that a PyTorch process broadcasts to a real server
// are those of the directory that it saves, at images that the server has seen
// under other weights; a trainer process that was killed is followed by another
// one, which makes a new group with the same server.
func TestBroadcastToVLLM(t *testing.T) {
	o := newOnVLLM(t)
	launch := o.launch(t, python(t))
	made, err := New(t.Context(), Options{
		Conn: o.conn, Scope: bus.Scope{Run: o.run, Incarnation: 1}, Launch: &launch, MaxPixels: pixels, Weights: rollout.ByNCCL,
	})
	must(t, err)
	defer func() { must(t, made.Close()) }()
	incarnation := uint64(time.Now().Unix()) // tests that share the server never meet each other's caches
	stage := trainer.Stage{Incarnation: incarnation, Name: "rl", Kind: trainer.RL, Model: o.model}
	must(t, made.Begin(t.Context(), stage))
	version := 0
	directory := func(path, digest string) rollout.Offer {
		version++
		return rollout.Offer{Policy: rollout.Policy{Incarnation: incarnation, Version: version, Digest: digest}, Transport: rollout.ByDirectory, Path: path}
	}
	publish := func() rollout.Offer {
		version++
		offer, err := made.Publish(t.Context(), rollout.Policy{Incarnation: incarnation, Version: version})
		must(t, err)
		return offer
	}
	same := func(what string, a, b []rollout.Trace) {
		t.Helper()
		if d := apart(a, b); d > agreement {
			t.Errorf("%s: log-probabilities differ by %g, want at most %g", what, d, agreement)
		}
	}

	start := o.adopt(t, directory(o.model, "d"))
	same("the first weights, by broadcast and as a directory", o.adopt(t, publish()), start)
	o.step(t, made, 1)
	second := publish()
	trained := o.adopt(t, second)
	if d := apart(trained, start); d < 100*agreement {
		t.Errorf("after a step log-probabilities differ by %g only", d)
	}
	dir := filepath.Join(t.TempDir(), "saved")
	pending, err := made.Save(t.Context(), dir)
	must(t, err)
	saved, err := pending.Wait(t.Context())
	must(t, err)
	if saved.Digest != second.Policy.Digest {
		t.Errorf("saved %s, published %s", saved.Digest, second.Policy.Digest)
	}
	same("back to the first weights", o.adopt(t, directory(o.model, "d")), start)
	same("the weights after a step, by broadcast and as a directory", o.adopt(t, directory(filepath.Join(dir, "policy"), saved.Digest)), trained)

	o.step(t, made, 2)
	if d := apart(o.adopt(t, publish()), trained); d < 100*agreement {
		t.Errorf("after another step log-probabilities differ by %g only", d)
	}
	must(t, made.local.commands[0].Process.Kill())
	<-made.local.exits()
	stage.Resume, stage.Step = dir, saved.Step
	must(t, made.Begin(t.Context(), stage))
	same("the weights after a step, from another process", o.adopt(t, publish()), trained)
}
