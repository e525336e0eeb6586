package graph

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/internal/vision"
	"github.com/uadt-train/uadt-train/trainer"
)

// Trainer is the gorgonia backend. Its calls are made in order and never at the
// same time (a second one waits); Pending of Save alone runs beside them.
type Trainer struct {
	options Options
	images  *pictures

	mu          sync.Mutex
	closed      bool
	incarnation uint64
	stage       *stage         // nil before Begin
	saves       sync.WaitGroup // checkpoints being written
	published   []string       // directories of the last offers, oldest first; nil before the first
	peak        int64          // most memory that the end of a step has seen
}

// stage is everything that one Begin sets up.
type stage struct {
	config    qwenvl.Config
	files     map[string][]byte // side files that every written directory carries
	weights   *layoutOfWeights
	train     []bool
	values    []float32 // master weights
	reference []float32 // nil when KL is off
	optimizer *adamw
	step      int // last step done
	flat      *flattener
	lanes     *lanes
	loaded    map[int]*loaded
	gradient  []float32
}

// New makes a Trainer that has no model yet.
func New(options Options) (*Trainer, error) {
	o, err := options.prepare()
	if err != nil {
		return nil, err
	}
	return &Trainer{options: o, images: &pictures{source: o.Images, limit: o.ImageCacheBytes / 4, workers: o.Lanes}}, nil
}

// Begin reads the model (or the resume point) and builds the stage. A failed
// Begin leaves the trainer as it was, except that it serves no lower
// incarnation any more.
func (t *Trainer) Begin(ctx context.Context, s trainer.Stage) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	if s.Incarnation < t.incarnation {
		return fmt.Errorf("begin stage %s: %w", s.Name, &IncarnationError{Have: t.incarnation, Got: s.Incarnation})
	}
	t.incarnation = s.Incarnation
	made, err := t.open(ctx, s)
	if err != nil {
		return fmt.Errorf("begin stage %s: %w", s.Name, err)
	}
	t.stage = made
	return nil
}

// open builds a stage.
func (t *Trainer) open(ctx context.Context, s trainer.Stage) (*stage, error) {
	if err := errors.Join(ctx.Err(), checkStage(s)); err != nil {
		return nil, err
	}
	dir, state := s.Model, (*optimizerState)(nil)
	if s.Resume != "" {
		var err error
		if state, err = readOptimizer(s.Resume); err != nil {
			return nil, err
		}
		if state.step != s.Step {
			return nil, fmt.Errorf("resume point %s stands at step %d, want %d", s.Resume, state.step, s.Step)
		}
		dir = policyDir(s.Resume)
	}
	made, err := t.openModel(dir)
	if err != nil {
		return nil, err
	}
	if made.train, err = made.weights.trainable(s.Frozen); err != nil {
		return nil, err
	}
	if !slices.Contains(made.train, true) {
		return nil, fmt.Errorf("every part is frozen: %v", s.Frozen)
	}
	made.optimizer = newAdamW(s.Optimizer, made.weights, made.train)
	if state != nil {
		if err := state.restore(made.optimizer); err != nil {
			return nil, fmt.Errorf("resume point %s: %w", s.Resume, err)
		}
	}
	if s.Reference != nil {
		if made.reference, err = openReference(made, *s.Reference); err != nil {
			return nil, err
		}
	}
	made.step = s.Step
	made.loaded = map[int]*loaded{}
	made.gradient = make([]float32, made.weights.size)
	made.lanes = newLanes(made.config, made.weights, made.train, t.options.Lanes)
	return made, nil
}

// checkStage reports what of a stage can be judged without reading files.
func checkStage(s trainer.Stage) error {
	var errs []error
	if s.Model == "" && s.Resume == "" {
		errs = append(errs, errors.New("neither a model nor a resume point is given"))
	}
	if s.Step < 0 {
		errs = append(errs, fmt.Errorf("step is %d, want at least 0", s.Step))
	}
	o := withDefaults(s.Optimizer)
	for name, v := range map[string]float64{"beta1": o.Beta1, "beta2": o.Beta2} {
		if !(v >= 0 && v < 1) {
			errs = append(errs, fmt.Errorf("optimizer %s is %v, want [0, 1)", name, v))
		}
	}
	if !(o.Epsilon > 0) || !(o.WeightDecay >= 0) {
		errs = append(errs, fmt.Errorf("optimizer epsilon is %v and weight decay %v, want above 0 and at least 0", o.Epsilon, o.WeightDecay))
	}
	return errors.Join(errs...)
}

// openModel reads a Hugging Face directory.
func (t *Trainer) openModel(dir string) (made *stage, err error) {
	model, err := checkpoint.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, model.Close()) }()
	config, err := qwenvl.ParseConfig(model.Config())
	if err != nil {
		return nil, fmt.Errorf("model %s: %w", dir, err)
	}
	made = &stage{config: config, weights: arrange(config)}
	if made.values, err = made.weights.read(model); err != nil {
		return nil, err
	}
	if made.files, err = sideFiles(model); err != nil {
		return nil, err
	}
	prepare := vision.DefaultConfig()
	if data, ok := made.files["preprocessor_config.json"]; ok {
		if prepare, err = vision.ParseConfig(data); err != nil {
			return nil, fmt.Errorf("model %s: %w", dir, err)
		}
	}
	if t.options.MaxPixels > 0 {
		prepare.MaxPixels = t.options.MaxPixels
		prepare.MinPixels = min(prepare.MinPixels, prepare.MaxPixels)
	}
	v := config.Vision
	if prepare.PatchSize != v.PatchSize || prepare.MergeSize != v.MergeSize || prepare.TemporalPatchSize != v.TemporalPatchSize {
		return nil, fmt.Errorf("model %s: preprocessor_config.json and config.json disagree on patch, merge or temporal patch size", dir)
	}
	t.images.use(preparation{config: prepare, window: v.WindowSize})
	made.flat = newFlattener(config, t.images)
	return made, nil
}

// openReference reads the policy that KL is measured against.
func openReference(s *stage, r trainer.Reference) (values []float32, err error) {
	model, err := checkpoint.Open(r.Path)
	if err != nil {
		return nil, fmt.Errorf("reference: %w", err)
	}
	defer func() { err = errors.Join(err, model.Close()) }()
	digest, err := model.Digest()
	if err != nil {
		return nil, fmt.Errorf("reference: %w", err)
	}
	if digest != r.Digest {
		return nil, fmt.Errorf("reference %s has digest %s, want %s", r.Path, digest, r.Digest)
	}
	if values, err = s.weights.read(model); err != nil {
		return nil, fmt.Errorf("reference: %w", err)
	}
	return values, nil
}

// current returns the stage, or why there is none.
func (t *Trainer) current() (*stage, error) {
	switch {
	case t.closed:
		return nil, ErrClosed
	case t.stage == nil:
		return nil, ErrNotBegun
	}
	return t.stage, nil
}

// Close waits for checkpoints being written and drops the model. Published
// directories stay.
func (t *Trainer) Close() error {
	t.mu.Lock()
	t.closed, t.stage = true, nil
	t.mu.Unlock()
	t.saves.Wait()
	return nil
}
