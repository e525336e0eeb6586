package coordinator

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/trainer"
)

// Coordinator runs one run. It is made by [New] and used once.
type Coordinator struct {
	o    Options
	last sealed // newest checkpoint
}

// Result says how far a run came.
type Result struct {
	Step       int    // global step of the last checkpoint
	Digest     string // SHA-256 over its weights
	Checkpoint string // its directory
	Policy     string // directory of its weights
	Counts     Counts
}

// New checks options, all problems reported together, and returns a coordinator
// that has touched nothing yet.
func New(options Options) (*Coordinator, error) {
	o := options.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	return &Coordinator{o: o}, nil
}

// Run executes the stages to their end. It obeys two contexts: when admit ends,
// no further batch is begun, what was admitted is drained and trained, a
// checkpoint is sealed and Run returns an error that wraps [ErrStopped]; when
// ctx ends, Run returns at once with its cause. Both leave a resumable run.
func (c *Coordinator) Run(ctx, admit context.Context) (Result, error) {
	first, at, s, err := c.begin()
	if err != nil {
		return Result{}, err
	}
	c.started(at.offset + at.step)
	for i := first; i < len(c.o.Stages); i++ {
		stage := c.o.Stages[i]
		if admit.Err() != nil {
			err = ErrStopped
			break
		}
		if err = c.stage(ctx, admit, stage, at, s); err != nil {
			break
		}
		at = place{offset: at.offset + stage.Steps}
		s = c.successor()
	}
	result := c.result()
	c.o.Parts.Sink.Emit(telemetry.RunEnded{Run: c.o.Run, Finished: err == nil, Digest: result.Digest, Step: result.Step})
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return result, err
}

// stage executes one stage from at.
func (c *Coordinator) stage(ctx, admit context.Context, stage Stage, at place, s start) error {
	if err := c.beginStage(ctx, stage, at, s); err != nil {
		return err
	}
	c.o.Parts.Sink.Emit(telemetry.StageStarted{Stage: plan(stage), Step: at.step})
	var done int
	var saved *saver
	if stage.Kind == trainer.RL {
		r, err := c.newRing(stage, at, s)
		if err != nil {
			return err
		}
		saved = r.saver
		done, err = r.run(ctx, admit)
		c.keep(saved)
		return ended(stage, done, err)
	}
	w, err := c.newSupervised(stage, at, s)
	if err != nil {
		return err
	}
	saved = w.saver
	done, err = w.run(ctx, admit)
	c.keep(saved)
	return ended(stage, done, err)
}

func ended(stage Stage, done int, err error) error {
	if err == nil && done < stage.Steps {
		return fmt.Errorf("stage %s after step %d of %d: %w", stage.Name, done, stage.Steps, ErrStopped)
	}
	return err
}

// keep remembers the newest checkpoint.
func (c *Coordinator) keep(s *saver) {
	if last := s.sealed(); last.dir != "" {
		c.last = last
	}
}

// beginStage has the trainer load what the stage starts from.
func (c *Coordinator) beginStage(ctx context.Context, stage Stage, at place, s start) error {
	begin := trainer.Stage{
		Incarnation: c.o.Incarnation, Name: stage.Name, Kind: stage.Kind, Model: s.model,
		Frozen: stage.Frozen, Optimizer: stage.Optimizer, Step: s.update, Seed: c.o.Seed,
	}
	if s.resume != nil {
		begin.Resume = s.dir
		if s.reference != nil {
			begin.Model = s.reference.Path
		}
	}
	if stage.Kind == trainer.RL && (c.o.RL.Loss.KL.Kind != trainer.KLOff || c.o.RL.RewardKL != 0) {
		if s.reference == nil || s.reference.Digest == "" {
			return fmt.Errorf("stage %s: KL needs the digest of the model it starts from, %s", stage.Name, begin.Model)
		}
		begin.Reference = s.reference
	}
	return bounded(ctx, await{fmt.Sprintf("trainer, begin of stage %s at step %d", stage.Name, at.step), c.o.Limits.Begin, "the trainer's log"},
		func(ctx context.Context) error { return c.o.Parts.Backend.Begin(ctx, begin) })
}

// successor is what the stage after a finished one starts from.
func (c *Coordinator) successor() start {
	state := c.last.state
	model := filepath.Join(c.last.dir, state.Saved.Policy)
	return start{
		model: model, reference: &trainer.Reference{Path: model, Digest: state.Saved.Digest},
		update: state.Update, badSteps: state.BadSteps, counts: state.Counts, shaper: state.Shaper,
	}
}

// begin finds where the run begins: at the first stage, or at the checkpoint.
func (c *Coordinator) begin() (stage int, at place, s start, err error) {
	if c.o.Resume == nil {
		return 0, place{}, start{model: c.o.Model, reference: &trainer.Reference{Path: c.o.Model, Digest: c.o.ModelDigest}}, nil
	}
	state, err := DecodeState(c.o.Resume.State)
	if err != nil {
		return 0, place{}, start{}, &ResumeError{Point: c.o.Resume.Dir, Err: err}
	}
	if state.Seed != c.o.Seed {
		return 0, place{}, start{}, &ResumeError{Point: c.o.Resume.Dir, Err: fmt.Errorf("its seed is %d, the run's is %d", state.Seed, c.o.Seed)}
	}
	c.last = sealed{dir: c.o.Resume.Dir, state: state}
	offset := 0
	for i, candidate := range c.o.Stages {
		if candidate.Name != state.Stage {
			offset += candidate.Steps
			continue
		}
		if offset+state.StageStep != state.Step || state.StageStep > candidate.Steps {
			break
		}
		if state.StageStep == candidate.Steps {
			return i + 1, place{offset: offset + candidate.Steps}, c.successor(), nil
		}
		return i, place{step: state.StageStep, offset: offset}, start{
			resume: &state, dir: c.o.Resume.Dir, reference: state.reference(filepath.Dir(c.o.Resume.Dir)),
			update: state.Update, badSteps: state.BadSteps, counts: state.Counts, shaper: state.Shaper,
		}, nil
	}
	return 0, place{}, start{}, &ResumeError{Point: c.o.Resume.Dir, Err: fmt.Errorf(
		"step %d of stage %q, global step %d, is no place in this run's stages", state.StageStep, state.Stage, state.Step)}
}

func (c *Coordinator) started(step int) {
	e := telemetry.RunStarted{Run: c.o.Run, Incarnation: c.o.Incarnation, Resumed: c.o.Resume != nil, Step: step}
	for _, s := range c.o.Stages {
		e.Stages = append(e.Stages, plan(s))
	}
	c.o.Parts.Sink.Emit(e)
}

func plan(s Stage) telemetry.StagePlan {
	return telemetry.StagePlan{Name: s.Name, Kind: string(s.Kind), Steps: s.Steps}
}

func (c *Coordinator) result() Result {
	l := c.last
	if l.dir == "" {
		return Result{}
	}
	return Result{Step: l.state.Step, Digest: l.state.Saved.Digest, Checkpoint: l.dir,
		Policy: filepath.Join(l.dir, l.state.Saved.Policy), Counts: l.state.Counts}
}
