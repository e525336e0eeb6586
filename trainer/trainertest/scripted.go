package trainertest

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// Vocab is the number of token ids that [Scripted] knows: 256 bytes, the end of
// sequence and the image pad of rollouttest's scripted fleet.
const Vocab = 258

// EOS is its end-of-sequence id.
const EOS int32 = 256

// Script describes a [Scripted] trainer.
type Script struct {
	// Root is where published weights are written.
	Root string
	// Refuse lists groups, by id, that Load refuses.
	Refuse []string
	// Bad lists optimizer steps whose loss is declared not finite.
	Bad []int
	// OnStep, when not nil, is called before a step is applied; an error fails
	// it. A test blocks in it to hold the trainer.
	OnStep func(ctx context.Context, step int) error
	// OnWait, when not nil, is called before a checkpoint is written out.
	OnWait func(ctx context.Context, step int) error
}

// Scripted is a trainer of a model of eight real numbers. Its update is a
// function of everything in the batch and of the order of the steps, its
// checkpoints are files, and it keeps the whole contract of the seam.
type Scripted struct {
	script Script

	mu        sync.Mutex
	stage     trainer.Stage
	begun     bool
	now       weights
	reference *weights
	batches   map[int]trainer.Batch
	published []string
}

var (
	_ trainer.Backend = (*Scripted)(nil)
	_ trainer.Keeper  = (*Scripted)(nil)
	_ trainer.Encoder = (*Scripted)(nil)
)

// NewScripted makes the trainer that script describes.
func NewScripted(script Script) *Scripted {
	return &Scripted{script: script, batches: map[int]trainer.Batch{}}
}

// Begin implements trainer.Backend. A stage without a model starts from the
// fixed weights of [InitialDigest].
func (s *Scripted) Begin(ctx context.Context, stage trainer.Stage) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun && stage.Incarnation < s.stage.Incarnation {
		return fmt.Errorf("begin of stage %s: incarnation %d is older than %d", stage.Name, stage.Incarnation, s.stage.Incarnation)
	}
	path, w := stage.Model, initial()
	if stage.Resume != "" {
		path = stage.Resume
		if err := w.readCheckpoint(stage.Resume); err != nil {
			return fmt.Errorf("begin of stage %s: %w", stage.Name, err)
		}
	} else if path != "" {
		if err := w.readModel(path); err != nil {
			return fmt.Errorf("begin of stage %s: %w", stage.Name, err)
		}
		w.Step = stage.Step
	} else {
		w.Step = stage.Step
	}
	if w.Step != stage.Step {
		return fmt.Errorf("begin of stage %s: %s stands at step %d, want %d", stage.Name, path, w.Step, stage.Step)
	}
	var reference *weights
	if r := stage.Reference; r != nil {
		reference = initial()
		if r.Path != "" {
			if err := reference.readModel(r.Path); err != nil {
				return fmt.Errorf("begin of stage %s: reference: %w", stage.Name, err)
			}
		}
		if got := reference.digest(); got != r.Digest {
			return fmt.Errorf("begin of stage %s: reference %s has digest %s, want %s", stage.Name, r.Path, got, r.Digest)
		}
	}
	s.stage, s.begun, s.now, s.reference = stage, true, *w, reference
	s.batches = map[int]trainer.Batch{}
	return nil
}

// Load implements trainer.Backend.
func (s *Scripted) Load(ctx context.Context, batch trainer.Batch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun {
		return fmt.Errorf("load of step %d: no stage was begun", batch.Step)
	}
	if want := s.now.Step + 1 + len(s.batches); batch.Step != want {
		if _, again := s.batches[batch.Step]; !again {
			return &trainer.StepOrderError{Have: want - 1, Got: batch.Step}
		}
	}
	for _, g := range batch.Groups {
		if slices.Contains(s.script.Refuse, g.ID) {
			return &trainer.GroupError{Group: g.ID, Err: fmt.Errorf("refused by script")}
		}
		if err := checkTokens(g); err != nil {
			return &trainer.GroupError{Group: g.ID, Err: err}
		}
	}
	if err := batch.Plan.Check(batch.Groups); err != nil {
		return fmt.Errorf("load of step %d: %w", batch.Step, err)
	}
	s.batches[batch.Step] = batch
	return nil
}

func checkTokens(g trainer.Group) error {
	if len(g.Prompt) == 0 || len(g.Traces) == 0 {
		return fmt.Errorf("%d prompt tokens and %d traces", len(g.Prompt), len(g.Traces))
	}
	for i, t := range g.Traces {
		if len(t.Tokens) == 0 {
			return fmt.Errorf("trace %d is empty", i)
		}
		for _, id := range slices.Concat(g.Prompt, t.Tokens) {
			if id < 0 || id >= Vocab {
				return fmt.Errorf("trace %d: token %d, the vocabulary has %d", i, id, Vocab)
			}
		}
	}
	return nil
}

// Score implements trainer.Backend.
func (s *Scripted) Score(ctx context.Context, step int, options trainer.ScoreOptions) (trainer.Scores, error) {
	if err := ctx.Err(); err != nil {
		return trainer.Scores{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	batch, ok := s.batches[step]
	if !ok {
		return trainer.Scores{}, fmt.Errorf("score of step %d: not loaded", step)
	}
	scores := trainer.Scores{
		Old:     over(batch, func(t trainer.Sequence, i int) float64 { return s.now.logprob(t.Tokens[i], i, options.Temperature) }),
		Entropy: over(batch, func(t trainer.Sequence, i int) float64 { return s.now.entropy(t.Tokens[i], i) }),
	}
	if s.reference != nil {
		scores.Reference = over(batch, func(t trainer.Sequence, i int) float64 {
			return s.reference.logprob(t.Tokens[i], i, options.Temperature)
		})
	}
	return scores, nil
}

func over(b trainer.Batch, f func(t trainer.Sequence, i int) float64) [][][]float32 {
	out := make([][][]float32, len(b.Groups))
	for q, g := range b.Groups {
		out[q] = make([][]float32, len(g.Traces))
		for k, t := range g.Traces {
			out[q][k] = make([]float32, len(t.Tokens))
			for i := range t.Tokens {
				out[q][k][i] = float32(f(t, i))
			}
		}
	}
	return out
}

// Step implements trainer.Backend.
func (s *Scripted) Step(ctx context.Context, step int, a trainer.Advantages) (trainer.Report, error) {
	if s.script.OnStep != nil {
		if err := s.script.OnStep(ctx, step); err != nil {
			return trainer.Report{}, err
		}
	}
	if err := ctx.Err(); err != nil {
		return trainer.Report{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	batch, ok := s.batches[step]
	if step != s.now.Step+1 || !ok {
		return trainer.Report{}, &trainer.StepOrderError{Have: s.now.Step, Got: step}
	}
	if len(a.Values) != len(batch.Groups) {
		return trainer.Report{}, fmt.Errorf("step %d: advantages of %d groups, want %d", step, len(a.Values), len(batch.Groups))
	}
	g, report, err := s.gradient(batch, a)
	if err != nil {
		return trainer.Report{}, fmt.Errorf("step %d: %w", step, err)
	}
	delete(s.batches, step)
	s.now.Step = step
	report.Step = step
	if bad := g.notFinite(); bad != "" || slices.Contains(s.script.Bad, step) {
		return trainer.Report{}, &trainer.BadStepError{Step: step, What: "loss", Groups: []string{bad}}
	}
	report.GradNorm = g.norm()
	if clip := a.Options.GradClip; clip > 0 && report.GradNorm > clip {
		g.scale(clip / report.GradNorm)
	}
	s.now.adamw(g, s.stage.Optimizer, a.Options.LearningRate)
	return report, nil
}

// Close implements trainer.Backend.
func (s *Scripted) Close() error { return nil }

// Publish implements trainer.Keeper.
func (s *Scripted) Publish(ctx context.Context, policy rollout.Policy) (rollout.Offer, error) {
	if err := ctx.Err(); err != nil {
		return rollout.Offer{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun {
		return rollout.Offer{}, fmt.Errorf("publish of version %d: no stage was begun", policy.Version)
	}
	policy.Digest = s.now.digest()
	dir := filepath.Join(s.script.Root, policy.String())
	if err := s.now.writeModel(dir); err != nil {
		return rollout.Offer{}, fmt.Errorf("publish of policy %s: %w", policy, err)
	}
	s.published = append(s.published, dir)
	if n := len(s.published); n > 2 {
		if old := s.published[n-3]; !slices.Contains(s.published[n-2:], old) {
			if err := os.RemoveAll(old); err != nil {
				return rollout.Offer{}, fmt.Errorf("publish of policy %s: %w", policy, err)
			}
		}
	}
	return rollout.Offer{Policy: policy, Transport: rollout.ByDirectory, Path: dir}, nil
}

// Save implements trainer.Keeper.
func (s *Scripted) Save(ctx context.Context, dir string) (trainer.Pending, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun {
		return nil, fmt.Errorf("save to %s: no stage was begun", dir)
	}
	return &pending{snapshot: s.now, dir: dir, script: s.script}, nil
}

type pending struct {
	snapshot weights
	dir      string
	script   Script
}

// Wait implements trainer.Pending.
func (p *pending) Wait(ctx context.Context) (trainer.Saved, error) {
	if p.script.OnWait != nil {
		if err := p.script.OnWait(ctx, p.snapshot.Step); err != nil {
			return trainer.Saved{}, err
		}
	}
	if err := p.snapshot.writeCheckpoint(p.dir); err != nil {
		return trainer.Saved{}, err
	}
	return trainer.Saved{Policy: "policy", Digest: p.snapshot.digest(), Optimizer: "optimizer.json", Step: p.snapshot.Step}, nil
}

// Encode implements trainer.Encoder: one token a byte.
func (s *Scripted) Encode(_ context.Context, q rollout.Question, response string) (trainer.Encoded, error) {
	var e trainer.Encoded
	for _, b := range []byte("? " + q.Text) {
		e.Prompt = append(e.Prompt, int32(b))
	}
	for _, b := range []byte(response) {
		e.Response = append(e.Response, int32(b))
	}
	e.Response = append(e.Response, EOS)
	return e, nil
}

// gradient sums the loss and its slope over batch, and measures the report.
func (s *Scripted) gradient(batch trainer.Batch, a trainer.Advantages) (*vector, trainer.Report, error) {
	var g vector
	var r trainer.Report
	d := a.Options.Denominators
	entropy, gap := 0.0, 0.0
	for q, group := range batch.Groups {
		if len(a.Values[q]) != len(group.Traces) {
			return nil, r, fmt.Errorf("group %s: advantages of %d traces, want %d", group.ID, len(a.Values[q]), len(group.Traces))
		}
		for k, t := range group.Traces {
			row := a.Values[q][k]
			if len(row) != 1 && len(row) != len(t.Tokens) {
				return nil, r, fmt.Errorf("group %s trace %d: %d advantages, want 1 or %d", group.ID, k, len(row), len(t.Tokens))
			}
			for i, token := range t.Tokens {
				if t.Mask != nil && !t.Mask[i] {
					continue
				}
				x := float64(row[min(i, len(row)-1)])
				lp := s.now.logprob(token, i, 1)
				r.Loss -= x * lp / float64(d.Tokens)
				j := slot(token, i)
				g[j] -= x * s.now.slope(token, i) / float64(d.Tokens)
				if s.reference != nil && a.Options.KL.Kind != trainer.KLOff {
					g[j] += a.Options.KL.Coef * (lp - s.reference.logprob(token, i, 1)) / float64(d.Tokens)
				}
				r.Tokens++
				entropy += s.now.entropy(token, i)
				if t.RolloutLogprobs != nil {
					gap += float64(t.RolloutLogprobs[i]) - lp
				}
			}
		}
	}
	r.PolicyLoss = r.Loss
	if r.Tokens > 0 {
		r.Entropy = entropy / float64(r.Tokens)
		r.Gap.KL = gap / float64(r.Tokens)
	}
	r.Gap.WMean, r.Gap.WMax = 1, math.Exp(-r.Gap.KL)
	return &g, r, nil
}
