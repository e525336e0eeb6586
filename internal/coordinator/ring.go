package coordinator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/uadt"
)

// ring is one RL stage at work: a sampler and a learner that know of each other
// only through the board and the queue of batches.
type ring struct {
	o     Options
	stage Stage
	at    place // where the stage began, or was resumed
	base  int   // policy version of the stage's start: rising over the stages of a run
	start start

	shaper   *uadt.Shaper
	board    *board
	slots    *slots
	books    *books
	saver    *saver
	atFleet  tokens // jobs at the fleet
	atReward tokens // traces being scored
	batches  chan *rolloutBatch

	// Of the sampler.
	sum  batchEnd // running sums over batches
	live rollout.Policy

	// Of the learner.
	update           int // optimizer updates done in the run
	badSteps         int // refused in a row
	trained, refused int // groups of the run: trained, and refused by the trainer
	done             int // steps of the stage done
	lineAt           time.Time
}

// start is what a stage begins from.
type start struct {
	model     string             // directory, for a stage that begins
	reference *trainer.Reference // what the stage starts from, or started from
	resume    *State             // nil for a stage that begins
	dir       string             // checkpoint directory of resume
	update    int
	badSteps  int
	counts    Counts
	shaper    *uadt.State // of the RL stage before this one; nil when there is none
}

// place is a position in the run.
type place struct {
	step   int // of the stage
	offset int // global step before the stage's first
}

// newRing prepares an RL stage.
func (c *Coordinator) newRing(stage Stage, at place, s start) (*ring, error) {
	o := c.o
	shaper, err := uadt.NewShaper(uadt.Setup{Options: o.RL.UADT, Advantage: o.RL.Advantage, StageSteps: stage.Steps, Seed: o.Seed})
	if err != nil {
		return nil, fmt.Errorf("stage %s: %w", stage.Name, err)
	}
	r := &ring{
		o: o, stage: stage, at: at, start: s, shaper: shaper, base: c.baseVersion(stage),
		board:   newBoard(at.step, stage.Steps),
		slots:   newSlots((o.RL.MaxStaleness + 1) * stage.Batch),
		books:   &books{},
		atFleet: make(tokens, o.RL.Concurrency), atReward: make(tokens, o.Limits.RewardJobs),
		batches: make(chan *rolloutBatch, o.RL.MaxStaleness+1),
		update:  s.update, badSteps: s.badSteps, trained: s.counts.Trained, done: at.step,
	}
	r.sum = batchEnd{admitted: s.counts.Admitted, dropped: s.counts.Dropped}
	r.books.set(s.counts)
	r.saver = &saver{c: c, stage: stage}
	if err := r.restore(); err != nil {
		return nil, err
	}
	return r, nil
}

// restore brings shaper, source and sums to where the stage begins.
func (r *ring) restore() error {
	if r.start.resume == nil {
		if r.start.shaper != nil {
			return r.shaper.CarryFrom(*r.start.shaper)
		}
		return nil
	}
	state := r.start.resume
	r.sum.refills, r.sum.cursor = state.Refills, state.Cursor
	if state.Shaper == nil {
		return &ResumeError{Point: r.start.dir, Err: errors.New("no shaper state in an rl stage")}
	}
	if err := r.shaper.Restore(*state.Shaper); err != nil {
		return &ResumeError{Point: r.start.dir, Err: err}
	}
	if err := r.stage.Source.Restore(state.Cursor); err != nil {
		return &ResumeError{Point: r.start.dir, Err: fmt.Errorf("source position: %w", err)}
	}
	return nil
}

// run executes the stage and returns the steps done. stop begins a drain when
// it ends.
func (r *ring) run(ctx, stop context.Context) (int, error) {
	if err := r.publish(ctx, r.at.step); err != nil {
		return r.done, err
	}
	hands := newCrew(ctx)
	release := context.AfterFunc(stop, func() { r.board.stop(r.o.RL.MaxStaleness, r.stage.Steps) })
	defer release()
	hands.run(r.sampler)
	hands.run(r.learner)
	err := hands.wait()
	if saved := r.saver.wait(ctx); err == nil {
		err = saved
	}
	return r.done, err
}

// ahead is the last batch that the checkpoint resumed from counts as admitted.
func (r *ring) ahead() int {
	if r.start.resume == nil {
		return 0
	}
	return r.start.resume.Ahead
}

// version returns v(n), the policy version that samples batch n.
func (r *ring) version(n int) int { return max(0, n-1-r.o.RL.MaxStaleness) }

// global returns the global step of step n of the stage.
func (r *ring) global(n int) int { return r.at.offset + n }

func (r *ring) now() time.Time { return r.o.Parts.Now() }

func (r *ring) emit(e telemetry.Event) { r.o.Parts.Sink.Emit(e) }

func (r *ring) alarm(n int, name, format string, args ...any) {
	r.emit(telemetry.Alarm{Name: name, Step: r.global(n), Message: fmt.Sprintf(format, args...)})
}

// baseVersion is the number of policy versions that the RL stages before stage
// publish, so that no stage offers a fleet an older version than it has. It is
// 0 for the first.
func (c *Coordinator) baseVersion(stage Stage) int {
	base := 0
	for _, s := range c.o.Stages {
		if s.Name == stage.Name {
			break
		}
		if s.Kind == trainer.RL {
			base += s.Steps + 1
		}
	}
	return base
}
