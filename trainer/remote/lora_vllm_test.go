//go:build pytorch && vllm

package remote

import (
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/micro"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// loraServer starts a real vLLM that takes adapters on model, and returns its
// address.
func loraServer(t *testing.T, model string) string {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := free.Addr().String()
	must(t, free.Close())
	log := filepath.Join(t.TempDir(), "vllm.log")
	serve := exec.Command("../../scripts/vllm-cpu/serve.sh", model, address[strings.LastIndexByte(address, ':')+1:], log,
		"--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--max-cpu-loras", "4")
	serve.Env = append(os.Environ(), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
	serve.Stderr = os.Stderr
	started := time.Now()
	out, err := serve.Output()
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	must(t, err)
	t.Logf("server started in %s", time.Since(started).Round(time.Second))
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, filepath.Dir(log))
		}
		if err := syscall.Kill(-pid, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	return "http://" + address
}

// scored is the largest difference between the log-probabilities that came with
// group and those of the trainer, which takes it as the data of step n.
func (o *onVLLM) scored(t *testing.T, made *Trainer, n int, group rollout.Group) float64 {
	t.Helper()
	g := trainer.Group{ID: fmt.Sprintf("sampled-%d", n), Prompt: group.PromptTokens, Images: o.images}
	for _, trace := range group.Traces {
		g.Traces = append(g.Traces, trainer.Sequence{Tokens: trace.Tokens, RolloutLogprobs: trace.Logprobs})
	}
	groups := []trainer.Group{g}
	plan, err := trainer.NewPlan(groups, 1, 0)
	must(t, err)
	must(t, made.Load(t.Context(), trainer.Batch{Step: n, Groups: groups, Plan: plan}))
	scores, err := made.Score(t.Context(), n, trainer.ScoreOptions{Temperature: 1})
	must(t, err)
	d := 0.0
	for i, trace := range group.Traces {
		for j, x := range trace.Logprobs {
			d = max(d, math.Abs(float64(x-scores.Old[0][i][j])))
		}
	}
	return d
}

// TestAdaptersOnVLLM: what a real server samples under successive adapters is
// what the trainer scores, the first adapter is the base, and the server has the
// last two. A trainer process that resumes offers the same policy again.
func TestAdaptersOnVLLM(t *testing.T) {
	model := filepath.Join(t.TempDir(), "base")
	digest, err := micro.Init(model, micro.Options{Vocab: 300, MaxPixels: pixels, Corpus: []string{"how many drusen are there"}, Seed: 5})
	must(t, err)
	o := onServer(t, "adapters", loraServer(t, model), model)
	launch := o.launch(t, python(t))
	made, err := New(t.Context(), Options{
		Conn: o.conn, Scope: bus.Scope{Run: o.run, Incarnation: 1}, Launch: &launch, MaxPixels: pixels,
		Weights: rollout.ByLoRA, LoRA: &LoRA{Rank: 8},
	})
	must(t, err)
	defer func() { must(t, made.Close()) }()
	stage := trainer.Stage{Incarnation: 1, Name: "rl", Kind: trainer.RL, Model: model, Seed: 3,
		Reference: &trainer.Reference{Path: model, Digest: digest}}
	must(t, made.Begin(t.Context(), stage))
	version := 0
	publish := func() rollout.Offer {
		version++
		offer, err := made.Publish(t.Context(), rollout.Policy{Incarnation: 1, Version: version})
		must(t, err)
		if offer.Transport != rollout.ByLoRA || offer.Base != model {
			t.Errorf("offer %+v, want one by LoRA on %s", offer, model)
		}
		return offer
	}

	base := o.answer(t, rollout.Offer{Policy: rollout.Policy{Incarnation: 1, Digest: digest}, Transport: rollout.AsServed})
	last := o.answer(t, publish())
	if d := apart(last.Traces, base.Traces); d > agreement {
		t.Errorf("an adapter of zeros changes log-probabilities by %g", d)
	}
	var offer rollout.Offer
	for n := 1; n <= 2; n++ {
		o.step(t, made, n)
		offer = publish()
		group := o.answer(t, offer)
		if d := apart(group.Traces, last.Traces); d < 100*agreement {
			t.Errorf("after step %d log-probabilities differ by %g only", n, d)
		}
		d := o.scored(t, made, n+1, group)
		t.Logf("adapter %d: vLLM and the trainer differ by %.2g", n, d)
		if d > agreement {
			t.Errorf("adapter %d: vLLM and the trainer differ by %g, want at most %g", n, d, agreement)
		}
		last = group
	}

	dir := filepath.Join(t.TempDir(), "saved")
	pending, err := made.Save(t.Context(), dir)
	must(t, err)
	saved, err := pending.Wait(t.Context())
	must(t, err)
	merged, err := checkpoint.Open(filepath.Join(dir, saved.Policy))
	must(t, err)
	found, err := merged.Digest()
	must(t, err)
	if saved.Adapter != offer.Policy.Digest || saved.Digest != found || !saved.Is(offer.Policy.Digest) || !saved.Is(found) || saved.Is(digest) {
		t.Errorf("saved %+v with weights %s, offered %s on %s", saved, found, offer.Policy, digest)
	}
	must(t, made.local.commands[0].Process.Kill())
	<-made.local.exits()
	stage.Resume, stage.Step = dir, saved.Step
	must(t, made.Begin(t.Context(), stage))
	if again := publish(); again.Policy.Digest != offer.Policy.Digest {
		t.Errorf("resumed at %s, saved at %s", again.Policy, offer.Policy)
	} else if d := apart(o.answer(t, again).Traces, last.Traces); d > agreement {
		t.Errorf("after a resume log-probabilities differ by %g", d)
	}
}
