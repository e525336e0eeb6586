package graph

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/uadt-train/uadt-train/trainer"
)

// loaded is a batch that waits for its step.
type loaded struct {
	batch  trainer.Batch
	chunks []*chunk
	scores *trainer.Scores // nil when it was not scored
	head   head            // of the scores
}

// Load flattens a batch: everything about it that can be wrong is found here.
// Several batches may wait, of steps that follow each other; a batch that is
// loaded again replaces the first.
func (t *Trainer) Load(ctx context.Context, batch trainer.Batch) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, err := t.current()
	if err != nil {
		return fmt.Errorf("load step %d: %w", batch.Step, err)
	}
	next := s.step + 1 + len(s.loaded)
	if _, again := s.loaded[batch.Step]; !again && batch.Step != next {
		return fmt.Errorf("load: %w", &trainer.StepOrderError{Have: next - 1, Got: batch.Step})
	}
	if len(batch.Groups) == 0 {
		return fmt.Errorf("load step %d: the batch has no groups", batch.Step)
	}
	chunks, err := s.flat.flatten(ctx, &batch, t.options.ChunkRows, t.options.Lanes)
	if err != nil {
		return fmt.Errorf("load step %d: %w", batch.Step, err)
	}
	s.loaded[batch.Step] = &loaded{batch: batch, chunks: chunks}
	return nil
}

// Score computes old and reference log-probabilities and entropies.
func (t *Trainer) Score(ctx context.Context, step int, options trainer.ScoreOptions) (trainer.Scores, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	start := time.Now()
	s, b, err := t.loadedAt(step)
	if err != nil {
		return trainer.Scores{}, fmt.Errorf("score: %w", err)
	}
	h, err := s.headOf(options.Temperature, options.Banned)
	if err != nil {
		return trainer.Scores{}, fmt.Errorf("score step %d: %w", step, err)
	}
	if err := b.refuseBanned(h); err != nil {
		return trainer.Scores{}, fmt.Errorf("score step %d: %w", step, err)
	}
	scores := trainer.Scores{}
	if scores.Old, scores.Entropy, err = s.logprobs(ctx, b, s.values, h); err != nil {
		return trainer.Scores{}, fmt.Errorf("score step %d: %w", step, err)
	}
	if s.reference != nil {
		if scores.Reference, _, err = s.logprobs(ctx, b, s.reference, h); err != nil {
			return trainer.Scores{}, fmt.Errorf("score step %d under the reference: %w", step, err)
		}
	}
	scores.Seconds = time.Since(start).Seconds()
	b.scores, b.head = &scores, h
	return scores, nil
}

// loadedAt finds the batch of a step.
func (t *Trainer) loadedAt(step int) (*stage, *loaded, error) {
	s, err := t.current()
	if err != nil {
		return nil, nil, fmt.Errorf("step %d: %w", step, err)
	}
	b, ok := s.loaded[step]
	if !ok {
		return nil, nil, fmt.Errorf("step %d: no batch is loaded for it", step)
	}
	return s, b, nil
}

// headOf checks how logits become log-probabilities.
func (s *stage) headOf(temperature float64, banned []int32) (head, error) {
	var errs []error
	if !(temperature > 0) || math.IsInf(temperature, 1) {
		errs = append(errs, fmt.Errorf("temperature is %v, want above 0", temperature))
	}
	for _, id := range banned {
		if id < 0 || int(id) >= s.config.VocabSize {
			errs = append(errs, fmt.Errorf("banned id %d is outside the vocabulary of %d", id, s.config.VocabSize))
		}
	}
	ids := slices.Clone(banned)
	slices.Sort(ids)
	return head{temperature: float32(temperature), banned: slices.Compact(ids)}, errors.Join(errs...)
}

// refuseBanned fails if a response holds a banned id: its log-probability would
// be minus infinity.
func (b *loaded) refuseBanned(h head) error {
	if len(h.banned) == 0 {
		return nil
	}
	banned := map[int32]bool{}
	for _, id := range h.banned {
		banned[id] = true
	}
	for _, g := range b.batch.Groups {
		for i, trace := range g.Traces {
			for j, id := range trace.Tokens {
				if banned[id] && (trace.Mask == nil || trace.Mask[j]) {
					return &trainer.GroupError{Group: g.ID, Err: fmt.Errorf("trace %d: token %d is the banned id %d", i, j, id)}
				}
			}
		}
	}
	return nil
}

// perToken makes [Q][G][T] slices for a batch.
func perToken(b *trainer.Batch) [][][]float32 {
	out := make([][][]float32, len(b.Groups))
	for i, g := range b.Groups {
		out[i] = make([][]float32, len(g.Traces))
		for j, t := range g.Traces {
			out[i][j] = make([]float32, len(t.Tokens))
		}
	}
	return out
}

// logprobs computes log-probabilities and entropies of a batch.
func (s *stage) logprobs(ctx context.Context, b *loaded, values []float32, h head) (lp, entropy [][][]float32, err error) {
	lp, entropy = perToken(&b.batch), perToken(&b.batch)
	err = s.lanes.logprobs(ctx, b.chunks, values, h, func(c *chunk, out []float32) error {
		for _, ref := range c.traces { // no two chunks hold the same trace
			for i := range ref.targets.len() {
				at := 2 * (ref.targets.from + i)
				lp[ref.group][ref.trace][i], entropy[ref.group][ref.trace][i] = out[at], out[at+1]
			}
		}
		return nil
	})
	return lp, entropy, err
}
