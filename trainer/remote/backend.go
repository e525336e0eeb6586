package remote

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/trainer"
)

// stageMessage is a trainer.Stage on the wire.
type stageMessage struct {
	Incarnation     uint64             `json:"incarnation"`
	Name            string             `json:"name"`
	Model           string             `json:"model"`
	Frozen          []string           `json:"frozen"`
	Optimizer       map[string]float64 `json:"optimizer"`
	Reference       string             `json:"reference"`
	ReferenceDigest string             `json:"reference_digest"`
	Resume          string             `json:"resume"`
	Step            int                `json:"step"`
	LoRA            loraMessage        `json:"lora"`
}

type beginBody struct {
	Stage         stageMessage `json:"stage"`
	MaxPixels     int          `json:"max_pixels"`
	Checkpointing bool         `json:"checkpointing"`
}

// Begin implements trainer.Backend. It waits for a full set of ranks, or
// starts one.
func (t *Trainer) Begin(ctx context.Context, s trainer.Stage) error {
	t.order.Lock()
	defer t.order.Unlock()
	t.mu.Lock()
	closed := t.closed
	t.mu.Unlock()
	if closed {
		return ErrClosed
	}
	body, err := t.beginBody(s)
	if err != nil {
		return fmt.Errorf("begin stage %s: %w", s.Name, err)
	}
	instance, err := t.assemble(ctx)
	if err != nil {
		return fmt.Errorf("begin stage %s: %w", s.Name, err)
	}
	if _, err := t.call(ctx, "begin", instance, same(body)); err != nil {
		return fmt.Errorf("begin stage %s: %w", s.Name, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	model := body.Stage.Model
	if body.Stage.Resume != "" {
		model = filepath.Join(body.Stage.Resume, "policy")
	}
	t.stage = &stage{instance: instance, base: body.Stage.Model, model: model, done: s.Step, loaded: map[int]*layout{}}
	return nil
}

func (t *Trainer) beginBody(s trainer.Stage) (beginBody, error) {
	var errs []error
	absolute := func(path string) string {
		if path == "" {
			return ""
		}
		out, err := filepath.Abs(path)
		errs = append(errs, err)
		return out
	}
	o := s.Optimizer
	m := stageMessage{
		Incarnation: s.Incarnation, Name: s.Name, Model: absolute(s.Model), Frozen: []string{}, Resume: absolute(s.Resume), Step: s.Step, LoRA: t.options.LoRA.message(s.Seed),
		Optimizer: map[string]float64{"beta1": or(o.Beta1, 0.9), "beta2": or(o.Beta2, 0.999), "epsilon": or(o.Epsilon, 1e-8), "weight_decay": o.WeightDecay},
	}
	for _, p := range s.Frozen {
		if !slices.Contains([]trainer.ModelPart{trainer.Vision, trainer.Projector, trainer.Language}, p) {
			errs = append(errs, fmt.Errorf("frozen part %q: want vision, projector or language", string(p)))
		}
		m.Frozen = append(m.Frozen, string(p))
	}
	if s.Reference != nil {
		m.Reference, m.ReferenceDigest = absolute(s.Reference.Path), s.Reference.Digest
	}
	if s.Model == "" && (s.Resume == "" || t.options.LoRA != nil) {
		errs = append(errs, errors.New("the model that the stage starts from, or started from, is not given"))
	}
	return beginBody{Stage: m, MaxPixels: t.options.MaxPixels, Checkpointing: !t.options.KeepActivations}, errors.Join(errs...)
}

func or(value, fallback float64) float64 {
	if value == 0 {
		return fallback
	}
	return value
}

// Load implements trainer.Backend: each rank is sent its groups, once.
func (t *Trainer) Load(ctx context.Context, b trainer.Batch) error {
	t.order.Lock()
	defer t.order.Unlock()
	s, err := t.begun()
	if err != nil {
		return fmt.Errorf("load step %d: %w", b.Step, err)
	}
	if b.Step <= s.done || b.Step > s.done+len(s.loaded)+1 {
		return fmt.Errorf("load: %w", &trainer.StepOrderError{Have: s.done + len(s.loaded), Got: b.Step})
	}
	if err := errors.Join(b.Plan.Check(b.Groups), checkBatch(b)); err != nil {
		return fmt.Errorf("load step %d: %w", b.Step, err)
	}
	if b.Plan.Ranks != t.options.Ranks {
		return fmt.Errorf("load step %d: the plan is for %d ranks, the trainer has %d", b.Step, b.Plan.Ranks, t.options.Ranks)
	}
	l := lay(b)
	_, err = t.call(ctx, "load", s.instance, func(rank int) (any, map[string]safetensors.Tensor, error) {
		body, tensors := l.shard(b, rank)
		return body, tensors, nil
	})
	if err != nil {
		// A rank that took its share keeps it until the step is loaded again.
		return fmt.Errorf("load step %d: %w", b.Step, err)
	}
	s.loaded[b.Step] = l
	return nil
}

type scoreBody struct {
	Step        int     `json:"step"`
	Temperature float64 `json:"temperature"`
	Banned      []int32 `json:"banned"`
}

// Score implements trainer.Backend.
func (t *Trainer) Score(ctx context.Context, step int, options trainer.ScoreOptions) (trainer.Scores, error) {
	t.order.Lock()
	defer t.order.Unlock()
	scores, err := t.score(ctx, step, options)
	if err != nil {
		return trainer.Scores{}, fmt.Errorf("score step %d: %w", step, err)
	}
	return scores, nil
}

func (t *Trainer) score(ctx context.Context, step int, options trainer.ScoreOptions) (trainer.Scores, error) {
	s, err := t.begun()
	if err != nil {
		return trainer.Scores{}, err
	}
	l := s.loaded[step]
	if l == nil {
		return trainer.Scores{}, errors.New("it is not loaded")
	}
	if !(options.Temperature > 0) {
		return trainer.Scores{}, fmt.Errorf("temperature %v: want above 0", options.Temperature)
	}
	started := time.Now()
	answers, err := t.call(ctx, "score", s.instance, same(scoreBody{Step: step, Temperature: options.Temperature, Banned: listed(options.Banned)}))
	if err != nil {
		return trainer.Scores{}, err
	}
	scores := trainer.Scores{Old: l.empty(), Entropy: l.empty()}
	if _, ok := answers[0].tensors["reference"]; ok {
		scores.Reference = l.empty()
	}
	for rank, a := range answers {
		for name, into := range map[string][][][]float32{"old": scores.Old, "entropy": scores.Entropy, "reference": scores.Reference} {
			if into == nil {
				continue
			}
			flat, err := a.floats(name, l.tokens(rank))
			if err != nil {
				return trainer.Scores{}, t.breakStage(s.instance, err)
			}
			l.scatter(flat, rank, into)
		}
	}
	scores.Seconds = time.Since(started).Seconds()
	return scores, nil
}

func listed(ids []int32) []int32 {
	if ids == nil {
		return []int32{}
	}
	return ids
}

// Step implements trainer.Backend.
func (t *Trainer) Step(ctx context.Context, step int, advantages trainer.Advantages) (trainer.Report, error) {
	t.order.Lock()
	defer t.order.Unlock()
	s, err := t.begun()
	if err != nil {
		return trainer.Report{}, fmt.Errorf("step %d: %w", step, err)
	}
	if step != s.done+1 {
		return trainer.Report{}, &trainer.StepOrderError{Have: s.done, Got: step}
	}
	l := s.loaded[step]
	if l == nil {
		return trainer.Report{}, fmt.Errorf("step %d: it is not loaded", step)
	}
	if err := advantages.Options.Validate(); err != nil {
		return trainer.Report{}, fmt.Errorf("step %d: %w", step, err)
	}
	started := time.Now()
	body := stepBody{Step: step, Options: optionsOf(advantages.Options)}
	answers, err := t.call(ctx, "step", s.instance, func(rank int) (any, map[string]safetensors.Tensor, error) {
		tensors, err := l.advantages(advantages.Values, rank)
		return body, tensors, err
	})
	var bad *trainer.BadStepError
	if err == nil || errors.As(err, &bad) {
		s.done = step
		delete(s.loaded, step)
	}
	if bad != nil {
		return trainer.Report{}, l.offenders(bad, answers)
	}
	if err != nil {
		return trainer.Report{}, fmt.Errorf("step %d: %w", step, err)
	}
	report, err := merge(answers)
	if err != nil {
		return trainer.Report{}, t.breakStage(s.instance, err)
	}
	report.Step, report.Seconds = step, time.Since(started).Seconds()
	return report, nil
}
