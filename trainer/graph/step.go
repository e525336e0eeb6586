package graph

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/metrics"
	"time"

	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/trainer"
)

// Step applies one optimizer update.
func (t *Trainer) Step(ctx context.Context, step int, advantages trainer.Advantages) (trainer.Report, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	start := time.Now()
	s, err := t.current()
	if err != nil {
		return trainer.Report{}, fmt.Errorf("step %d: %w", step, err)
	}
	if step != s.step+1 {
		return trainer.Report{}, &trainer.StepOrderError{Have: s.step, Got: step}
	}
	_, b, err := t.loadedAt(step)
	if err != nil {
		return trainer.Report{}, err
	}
	report, err := s.differentiate(ctx, b, advantages)
	var bad *trainer.BadStepError
	if err != nil && !errors.As(err, &bad) {
		return trainer.Report{}, fmt.Errorf("step %d: %w", step, err)
	}
	// From here on the step is done, for better or worse.
	s.step = step
	delete(s.loaded, step)
	if err != nil {
		return trainer.Report{}, err
	}
	scale := 1.0
	if clip := advantages.Options.GradClip; clip > 0 && report.GradNorm > clip {
		scale = clip / (report.GradNorm + 1e-6)
	}
	s.optimizer.apply(s.values, s.gradient, advantages.Options.LearningRate, scale)
	report.Seconds = time.Since(start).Seconds()
	t.peak = max(t.peak, heapBytes())
	report.PeakBytes = t.peak
	return report, nil
}

// Gradients computes the loss of a loaded batch and its gradient by tensor name
// under the current weights, and changes nothing: what Step would apply. Frozen
// tensors have zero gradients.
func (t *Trainer) Gradients(ctx context.Context, step int, advantages trainer.Advantages) (trainer.Report, map[string]safetensors.Tensor, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, b, err := t.loadedAt(step)
	if err != nil {
		return trainer.Report{}, nil, fmt.Errorf("gradients: %w", err)
	}
	report, err := s.differentiate(ctx, b, advantages)
	if err != nil {
		return trainer.Report{}, nil, fmt.Errorf("gradients of step %d: %w", step, err)
	}
	return report, s.weights.tensors(append([]float32(nil), s.gradient...)), nil
}

// differentiate fills s.gradient and reports everything but time. Losses or
// gradients that are not finite give a *trainer.BadStepError.
func (s *stage) differentiate(ctx context.Context, b *loaded, advantages trainer.Advantages) (trainer.Report, error) {
	h, err := s.headOf(advantages.Options.Temperature, advantages.Options.Banned)
	if err != nil {
		return trainer.Report{}, err
	}
	if err := errors.Join(advantages.Options.Validate(), b.refuseBanned(h), b.refuseHead(h)); err != nil {
		return trainer.Report{}, err
	}
	o, err := s.objective(ctx, b, advantages, h)
	if err != nil {
		return trainer.Report{}, err
	}
	if err := s.lanes.gradients(ctx, b.chunks, s.values, task{h, o.chunk}, s.gradient); err != nil {
		return trainer.Report{}, err
	}
	report := o.report()
	report.Step = b.batch.Step
	report.GradNorm = norm(s.gradient)
	if groups := o.bad(); len(groups) > 0 || !finite(report.Loss) {
		return trainer.Report{}, &trainer.BadStepError{Step: b.batch.Step, What: "loss", Groups: groups}
	}
	if !finite(report.GradNorm) {
		return trainer.Report{}, &trainer.BadStepError{Step: b.batch.Step, What: "gradient"}
	}
	return report, nil
}

// refuseHead fails if the batch was scored otherwise than it is trained.
func (b *loaded) refuseHead(h head) error {
	if b.scores == nil {
		return nil
	}
	if b.head.temperature != h.temperature {
		return fmt.Errorf("temperature is %v, the batch was scored at %v", h.temperature, b.head.temperature)
	}
	if fmt.Sprint(b.head.banned) != fmt.Sprint(h.banned) {
		return fmt.Errorf("banned ids are %v, the batch was scored with %v", h.banned, b.head.banned)
	}
	return nil
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// heapBytes is the memory that the process holds of the system's: what it took
// less what it gave back.
func heapBytes() int64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	return int64(samples[0].Value.Uint64() - samples[1].Value.Uint64())
}
