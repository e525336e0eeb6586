package remote

import (
	"fmt"
	"math"

	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/trainer"
)

// heading describes a group of a shard; its tokens are in the frame's tensors.
type heading struct {
	ID     string   `json:"id"`
	Index  int      `json:"index"` // in the batch
	Images []string `json:"images"`
	Traces int      `json:"traces"`
}

// loadBody is the body of load.
type loadBody struct {
	Step         int       `json:"step"`
	MicroBatches int       `json:"micro_batches"`
	Groups       []heading `json:"groups"`
	// Parts are {micro-batch, group of the shard, first trace, one after the last}.
	Parts [][4]int `json:"parts"`
}

// layout says which traces of a batch each rank holds, in the order of its
// frames.
type layout struct {
	lengths [][]int // [Q][G] tokens of each trace
	ids     []string
	groups  [][]int // [ranks] groups of the batch
}

// lay orders the groups of a batch by rank.
func lay(b trainer.Batch) *layout {
	l := &layout{groups: make([][]int, b.Plan.Ranks)}
	home := make([]int, len(b.Groups))
	for _, p := range b.Plan.Parts {
		home[p.Group] = p.Rank
	}
	for q, g := range b.Groups {
		lengths := make([]int, len(g.Traces))
		for i, s := range g.Traces {
			lengths[i] = len(s.Tokens)
		}
		l.lengths, l.ids = append(l.lengths, lengths), append(l.ids, g.ID)
		if len(g.Traces) > 0 {
			l.groups[home[q]] = append(l.groups[home[q]], q)
		}
	}
	return l
}

// tokens counts the response tokens of a rank.
func (l *layout) tokens(rank int) int {
	n := 0
	for _, q := range l.groups[rank] {
		for _, t := range l.lengths[q] {
			n += t
		}
	}
	return n
}

// shard renders what a rank gets of a batch.
func (l *layout) shard(b trainer.Batch, rank int) (loadBody, map[string]safetensors.Tensor) {
	body := loadBody{Step: b.Step, MicroBatches: b.Plan.MicroBatches, Groups: []heading{}, Parts: [][4]int{}}
	place := make(map[int]int, len(l.groups[rank]))
	var prompts, tokens []int32
	var mask []byte
	var sampled []float32
	promptOffsets, offsets := []int32{0}, []int32{0}
	for i, q := range l.groups[rank] {
		g := b.Groups[q]
		place[q] = i
		h := heading{ID: g.ID, Index: q, Images: []string{}, Traces: len(g.Traces)}
		for _, image := range g.Images {
			h.Images = append(h.Images, image.Digest)
		}
		body.Groups = append(body.Groups, h)
		prompts = append(prompts, g.Prompt...)
		promptOffsets = append(promptOffsets, int32(len(prompts)))
		for _, s := range g.Traces {
			tokens = append(tokens, s.Tokens...)
			offsets = append(offsets, int32(len(tokens)))
			for t := range s.Tokens {
				mask = append(mask, bit(s.Mask == nil || s.Mask[t]))
				lp := float32(math.NaN())
				if s.RolloutLogprobs != nil {
					lp = s.RolloutLogprobs[t]
				}
				sampled = append(sampled, lp)
			}
		}
	}
	for _, p := range b.Plan.Parts {
		if p.Rank == rank {
			body.Parts = append(body.Parts, [4]int{p.MicroBatch, place[p.Group], p.From, p.To})
		}
	}
	return body, map[string]safetensors.Tensor{
		"prompt_tokens": safetensors.FromInt32(prompts, len(prompts)), "prompt_offsets": safetensors.FromInt32(promptOffsets, len(promptOffsets)),
		"tokens": safetensors.FromInt32(tokens, len(tokens)), "offsets": safetensors.FromInt32(offsets, len(offsets)),
		"mask": safetensors.FromBytes(mask, len(mask)), "rollout_logprobs": safetensors.FromFloat32(sampled, len(sampled)),
	}
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// checkBatch refuses what cannot be sent: slices of different length, and
// totals beyond the offsets of a frame.
func checkBatch(b trainer.Batch) error {
	total := 0
	for _, g := range b.Groups {
		total += len(g.Prompt)
		for i, s := range g.Traces {
			total += len(s.Tokens)
			if s.Mask != nil && len(s.Mask) != len(s.Tokens) {
				return &trainer.GroupError{Group: g.ID, Err: fmt.Errorf("mask of trace %d has %d tokens, want %d", i, len(s.Mask), len(s.Tokens))}
			}
			if s.RolloutLogprobs != nil && len(s.RolloutLogprobs) != len(s.Tokens) {
				return &trainer.GroupError{Group: g.ID, Err: fmt.Errorf("rollout log-probabilities of trace %d have %d tokens, want %d", i, len(s.RolloutLogprobs), len(s.Tokens))}
			}
		}
	}
	if total > math.MaxInt32 {
		return fmt.Errorf("batch of %d tokens, the limit is %d", total, math.MaxInt32)
	}
	return nil
}

// advantages renders the values of a rank.
func (l *layout) advantages(values [][][]float32, rank int) (map[string]safetensors.Tensor, error) {
	var flat []float32
	offsets := []int32{0}
	if len(values) != len(l.lengths) {
		return nil, fmt.Errorf("advantages of %d groups, the batch has %d", len(values), len(l.lengths))
	}
	for _, q := range l.groups[rank] {
		if len(values[q]) != len(l.lengths[q]) {
			return nil, fmt.Errorf("group %s: advantages of %d traces, want %d", l.ids[q], len(values[q]), len(l.lengths[q]))
		}
		for i, row := range values[q] {
			if len(row) != 1 && len(row) != l.lengths[q][i] {
				return nil, fmt.Errorf("group %s trace %d: %d advantages, want 1 or %d", l.ids[q], i, len(row), l.lengths[q][i])
			}
			flat = append(flat, row...)
			offsets = append(offsets, int32(len(flat)))
		}
	}
	return map[string]safetensors.Tensor{
		"advantages": safetensors.FromFloat32(flat, len(flat)), "advantage_offsets": safetensors.FromInt32(offsets, len(offsets)),
	}, nil
}

// empty makes [Q][G] rows for values of the batch.
func (l *layout) empty() [][][]float32 {
	out := make([][][]float32, len(l.lengths))
	for q := range out {
		out[q] = make([][]float32, len(l.lengths[q]))
	}
	return out
}

// scatter cuts a rank's flat values into the rows of its traces.
func (l *layout) scatter(flat []float32, rank int, into [][][]float32) {
	for _, q := range l.groups[rank] {
		for i, n := range l.lengths[q] {
			into[q][i], flat = flat[:n:n], flat[n:]
		}
	}
}
