package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/trainer"
)

// memory is what a rank needs in one stage, in bytes.
type memory struct {
	stage                               string
	tokens                              int64 // of a micro-batch
	weights, master, moments, gradients int64
	reference, activations              int64
	snapshot                            int64 // on the host
}

// total is what the device must hold.
func (m memory) total() int64 {
	return m.weights + m.master + m.moments + m.gradients + m.reference + m.activations
}

// String lists the parts.
func (m memory) String() string {
	return fmt.Sprintf("%s for a rank in stage %s: weights %s, master weights %s, moments %s, gradients %s, reference %s, activations of %d tokens %s",
		bytesText(m.total()), m.stage, bytesText(m.weights), bytesText(m.master), bytesText(m.moments), bytesText(m.gradients),
		bytesText(m.reference), m.tokens, bytesText(m.activations))
}

const (
	float32Bytes  = 4
	bfloat16Bytes = 2
	momentsBytes  = 2 * float32Bytes
	chunkTokens   = 2048 // of logits that exist at a time, CHUNK of uadt_trainer/logprobs.py
)

// needs estimates one stage, on a GPU (bfloat16 weights with float32 masters,
// cut over the ranks) or on the CPU (float32, whole on each rank).
func (d *doctor) needs(s configs.Stage, onGPU bool) memory {
	size, share := int64(float32Bytes), int64(1)
	if onGPU {
		size = bfloat16Bytes
		if d.c.Trainer.LoRARank == 0 {
			share = int64(d.c.Trainer.Ranks)
		}
	}
	all, trained := d.model.all(), d.model.trained(s.Frozen)
	m := memory{stage: s.Name, tokens: int64(d.c.Trainer.TokenBudget)}
	if d.c.Trainer.LoRARank > 0 {
		trained = d.adapterParameters()
		all += trained
	}
	m.weights = all * size / share
	switch {
	case share > 1: // what is trained is kept in float32 and is its own master
		m.weights = ((all-trained)*size + trained*float32Bytes) / share
		m.gradients = trained * float32Bytes / share
	default:
		m.gradients = trained * size
		if onGPU {
			m.master = trained * float32Bytes
		}
	}
	m.moments = trained * momentsBytes / share
	if s.Kind == trainer.RL && d.c.GRPO.KL != "off" && d.c.Trainer.LoRARank == 0 {
		m.reference = d.model.all() * size / share
	}
	m.activations = d.activations(s, size)
	if share > 1 { // a layer and what is outside of layers are whole at a time
		m.activations += int64(d.model.vocabulary*d.model.text.width) * size * 2
	}
	// A checkpoint is copied to the host before it is written.
	m.snapshot = d.model.all()*size + trained*(float32Bytes+momentsBytes)
	return m
}

// adapterParameters is the size of LoRA's matrices, were all projections square
// in the width of the stack: an upper bound but for the gated part.
func (d *doctor) adapterParameters() int64 {
	t := d.model.text
	perTarget := int64(t.layers) * int64(d.c.Trainer.LoRARank) * int64(t.width+t.inner)
	return perTarget * int64(len(d.c.Trainer.LoRATargets))
}

// activations estimates a micro-batch that fills the token budget, when layers
// are computed again in the backward pass: of each layer the input and what
// attention gave are kept, of one all else, and logits exist a chunk at a time
// with their gradient. Measured on Qwen2.5-VL-3B (docs/measurements.md) it is
// above what was needed.
func (d *doctor) activations(s configs.Stage, size int64) int64 {
	tokens := int64(d.c.Trainer.TokenBudget)
	if s.Kind != trainer.RL {
		if r := d.rows[s.Name]; r.looked > 0 { // a micro-batch has no more than the update
			tokens = min(tokens, int64(s.Batch)*int64(r.prompt+d.c.Rollout.MaxTokens))
		}
	}
	stack := func(z stackSizes, rows int64) int64 {
		kept := rows * int64(2*z.layers*z.width)
		one := rows * int64(8*z.width+4*z.inner)
		return (kept + one) * size
	}
	out := stack(d.model.text, tokens)
	out += min(tokens, chunkTokens) * int64(d.model.vocabulary) * (size + float32Bytes)
	if r := d.rows[s.Name]; r.prompt > 0 {
		row := int64(r.prompt)
		if s.Kind == trainer.RL {
			row += int64(d.c.Rollout.GroupSize * d.c.Rollout.MaxTokens / 4) // responses are seldom as long as they may be
		}
		images := tokens * int64(r.imageTokens) / row
		out += stack(d.model.vision, images*int64(d.model.imageRows))
	}
	return out
}

// checkMemory estimates every stage, and compares the largest with the smallest
// device, or with what this machine has.
func (d *doctor) checkMemory(context.Context) []finding {
	if d.model.kind == "" {
		return nil // the model's own line says why
	}
	if d.c.Trainer.Backend == backendPyTorch && d.c.Trainer.Launch == "external" {
		m := d.largest(true)
		return []finding{check("memory", "about "+m.String()+"; the ranks are elsewhere and their memory is not known", nil)}
	}
	available, err := availableMemory()
	if d.host != nil && len(d.host.Devices) > 0 {
		m := d.largest(true)
		return append([]finding{d.compareGPUs(m)}, compareHost("host memory", "a snapshot of the weights and the optimizer for each checkpoint, "+bytesText(m.snapshot), m.snapshot, available, err))
	}
	m := d.largest(false)
	ranks := int64(d.c.Trainer.Ranks)
	return []finding{compareHost("memory", fmt.Sprintf("about %s; %d rank(s) and a snapshot of %s", m, ranks, bytesText(m.snapshot)), ranks*m.total()+m.snapshot, available, err)}
}

// largest is the stage that needs the most.
func (d *doctor) largest(onGPU bool) (most memory) {
	for _, s := range d.c.Stages {
		if m := d.needs(s, onGPU); m.total() >= most.total() {
			most = m
		}
	}
	return most
}

func (d *doctor) compareGPUs(m memory) finding {
	least := d.host.Devices[0]
	for _, device := range d.host.Devices[:min(len(d.host.Devices), d.c.Trainer.Ranks)] {
		if device.Free < least.Free {
			least = device
		}
	}
	f := check("memory", fmt.Sprintf("about %s; free on %s: %s of %s", m, least.Name, bytesText(least.Free), bytesText(least.Total)), nil)
	if m.total() > least.Free {
		f.OK = false
		f.Want = fmt.Sprintf("%s free: more ranks (weights are cut over them), a smaller trainer.token_budget, trainer.lora_rank, or nobody else on the GPU", bytesText(m.total()))
	}
	return f
}

func compareHost(name, needed string, bytes, available int64, err error) finding {
	if err != nil {
		return check(name, fmt.Sprintf("%s; %v", needed, err), nil)
	}
	f := check(name, fmt.Sprintf("%s; this machine has %s available", needed, bytesText(available)), nil)
	if bytes > available {
		f.OK, f.Want = false, bytesText(bytes)
	}
	return f
}

// availableMemory is what the kernel could give to a program.
func availableMemory() (int64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, errNoMemInfo
	}
	return parseMemInfo(string(data))
}

func parseMemInfo(text string) (int64, error) {
	for _, line := range strings.Split(text, "\n") {
		rest, ok := strings.CutPrefix(line, "MemAvailable:")
		if !ok {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil || kib < 0 || kib > 1<<50 {
			return 0, errNoMemInfo
		}
		return kib << 10, nil
	}
	return 0, errNoMemInfo
}

// checkpointBytes is the size of one checkpoint: the weights, and for each
// trained one its master and two moments in float32.
func checkpointBytes(model modelFacts) int64 {
	return model.all() * (float32Bytes + float32Bytes + momentsBytes)
}

// checkDisk compares what a run keeps with what the disk has.
func (d *doctor) checkDisk(context.Context) []finding {
	dir := d.c.RunsDir
	for {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			break
		}
		dir = parent
	}
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		return []finding{check("disk", "", fmt.Errorf("%s: %w", dir, err))}
	}
	free := int64(stat.Bavail) * stat.Bsize
	kept := int64(d.c.Checkpoint.Keep + len(d.c.Stages))
	need := kept * checkpointBytes(d.model)
	f := check("disk", fmt.Sprintf("%s: %s free; %d checkpoints need at most about %s", dir, bytesText(free), kept, bytesText(need)), nil)
	if free < need {
		f.OK, f.Want = false, bytesText(need)+" free, or a smaller checkpoint.keep"
	}
	return []finding{f}
}
