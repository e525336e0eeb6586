package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/uadt-train/uadt-train/rollout/vllm"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/uadt"
)

// checkFleet asks all servers at the same time.
func (d *doctor) checkFleet(ctx context.Context) []finding {
	servers := d.c.Rollout.Servers
	if !hasKind(d.c, trainer.RL) {
		return nil
	}
	if len(servers) == 0 {
		f := check("fleet", "none: the native engine serves in the run's process", nil)
		if d.c.Rollout.Workers == 0 {
			f.Found = "servers of workers elsewhere, which are not asked"
		}
		return []finding{f}
	}
	found := make([]finding, len(servers))
	var wait sync.WaitGroup
	for i, url := range servers {
		wait.Go(func() { found[i] = d.checkServer(ctx, url) })
	}
	wait.Wait()
	return found
}

func (d *doctor) checkServer(ctx context.Context, url string) finding {
	info, err := vllm.Inspect(ctx, url, vllm.Options{ProbeTimeout: serverPatience})
	if err != nil {
		return finding{Check: "fleet", Found: err.Error(), Want: "a vLLM server at " + url, unreachable: true}
	}
	found := fmt.Sprintf("%s: version %s serves %s, started on %s, context %d tokens", url, info.Version, info.Model, info.Root, info.MaxLength)
	if s := info.Settings; s != nil {
		found += fmt.Sprintf(", %s, %d images a prompt", s.LogprobsMode, s.Images)
	}
	var wanted []string
	want := func(ok bool, format string, args ...any) {
		if !ok {
			wanted = append(wanted, fmt.Sprintf(format, args...))
		}
	}
	if !info.CanChange {
		found += ", no development routes"
	}
	if info.Paused {
		found += ", paused"
	}
	if !info.Watched {
		found += ", shows no progress: it is known to hang only after rollout.timeout"
	}
	tokens, images, bound := d.wantsContext()
	fits := info.MaxLength == 0 || info.MaxLength >= tokens
	if bound && !fits {
		found += fmt.Sprintf(", which prompts of at most %d tokens and responses of %d may exceed", tokens-d.c.Rollout.MaxTokens, d.c.Rollout.MaxTokens)
	}
	want(info.CanChange, "VLLM_SERVER_DEV_MODE=1 for pausing and changing weights")
	want(!info.Paused, "one that is not paused (POST /resume)")
	want(fits || bound, "--max-model-len of at least %d: the longest prompt and rollout.max_tokens %d", tokens, d.c.Rollout.MaxTokens)
	if s := info.Settings; s != nil {
		want(s.LogprobsMode == "processed_logprobs", "--logprobs-mode processed_logprobs: those of the distribution that is sampled from")
		want(s.Images >= images, "--limit-mm-per-prompt with at least %d images", images)
		want(s.MaxLogprobs >= topLogprobs(d.c.UADT.Entropy), "--max-logprobs of at least %d for uadt.entropy %s", topLogprobs(d.c.UADT.Entropy), d.c.UADT.Entropy)
		want(d.c.Trainer.Weights != "nccl" || s.Broadcast, "--weight-transfer-config for trainer.weights nccl")
		want(d.c.Trainer.Weights != "lora" || s.Adapters && s.AdapterRank >= d.c.Trainer.LoRARank, "--enable-lora --max-lora-rank %d for trainer.weights lora", d.c.Trainer.LoRARank)
	}
	if name, differs := otherFile(info.Root, d.c.Model.Path); differs {
		want(false, "one started on the %s of %s: prompts would be other tokens", name, d.c.Model.Path)
	}
	return finding{Check: "fleet", OK: len(wanted) == 0, Found: found, Want: list(wanted)}
}

// topLogprobs is the cap on top log-probabilities that an estimator needs of a
// server: one more than it uses, see the requests of rollout/vllm.
func topLogprobs(e uadt.Estimator) int {
	if k := e.K(); k > 0 {
		return k + 1
	}
	return 0
}

// otherFile compares the files that decide how text becomes tokens, where what a
// server was started on is a directory that is seen from here.
func otherFile(root, model string) (name string, differs bool) {
	for _, name := range []string{"tokenizer.json", "chat_template.json", "chat_template.jinja"} {
		theirs, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			continue
		}
		ours, err := os.ReadFile(filepath.Join(model, name))
		if err == nil && !bytes.Equal(theirs, ours) {
			return name, true
		}
	}
	return "", false
}
