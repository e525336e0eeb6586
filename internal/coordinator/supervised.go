package coordinator

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// supervised is one align or sft stage at work. A record is a group with G = 1
// and A = 1 under the loss nll; there is no fleet.
type supervised struct {
	c        *Coordinator
	stage    Stage
	at       place
	start    start
	saver    *saver
	records  chan records
	update   int
	badSteps int
	done     int
	cursor   []byte // of the source, after the step done
	lineAt   time.Time
}

// records is one encoded batch.
type records struct {
	step   int
	groups []trainer.Group
	cursor []byte // of the source, after the batch
	took   time.Duration
}

func (c *Coordinator) newSupervised(stage Stage, at place, s start) (*supervised, error) {
	if s.resume != nil {
		if err := stage.Source.Restore(s.resume.Cursor); err != nil {
			return nil, &ResumeError{Point: s.dir, Err: fmt.Errorf("source position: %w", err)}
		}
	}
	return &supervised{
		c: c, stage: stage, at: at, start: s, saver: &saver{c: c, stage: stage},
		records: make(chan records, 1), update: s.update, badSteps: s.badSteps, done: at.step,
	}, nil
}

// run executes the stage: one goroutine encodes a batch ahead, one trains.
func (s *supervised) run(ctx, stop context.Context) (int, error) {
	hands := newCrew(ctx)
	hands.run(func(ctx context.Context) error { return s.encoder(ctx, stop) })
	hands.run(func(ctx context.Context) error { return s.learner(ctx, stop) })
	err := hands.wait()
	if saved := s.saver.wait(ctx); err == nil {
		err = saved
	}
	return s.done, err
}

// encoder draws and encodes batches until the stage ends or is to stop.
func (s *supervised) encoder(ctx, stop context.Context) error {
	defer close(s.records)
	for n := s.at.step + 1; n <= s.stage.Steps; n++ {
		b, err := s.encode(ctx, n)
		if err != nil {
			return err
		}
		select {
		case s.records <- b:
		case <-stop.Done():
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// encode draws the records of step n and encodes them in parallel, in order.
func (s *supervised) encode(ctx context.Context, n int) (records, error) {
	o := s.c.o
	started := o.Parts.Now()
	b := records{step: n, groups: make([]trainer.Group, s.stage.Batch)}
	hands := newCrew(ctx)
	room := make(tokens, runtime.GOMAXPROCS(0))
	for i := range b.groups {
		q, _, err := draw(ctx, o, s.stage, n)
		if err == nil {
			err = room.take(hands.ctx)
		}
		if err != nil {
			hands.fail(err)
			break
		}
		hands.run(func(ctx context.Context) error {
			defer room.give()
			return bounded(ctx, await{"encoder, record " + q.ID, o.Limits.Encode, "the trainer's log"}, func(ctx context.Context) error {
				e, err := o.Parts.Encoder.Encode(ctx, q, q.Response)
				b.groups[i] = record(q, e)
				return err
			})
		})
	}
	if err := hands.wait(); err != nil {
		return records{}, err
	}
	var err error
	if b.cursor, err = s.stage.Source.State(); err != nil {
		return records{}, fmt.Errorf("stage %s step %d: source position: %w", s.stage.Name, n, err)
	}
	b.took = o.Parts.Now().Sub(started)
	return b, nil
}

func record(q rollout.Question, e trainer.Encoded) trainer.Group {
	return trainer.Group{ID: q.ID, Prompt: e.Prompt, Images: q.Images(), Traces: []trainer.Sequence{{Tokens: e.Response}}}
}

// learner trains the batches in order.
func (s *supervised) learner(ctx, stop context.Context) error {
	s.lineAt = s.c.o.Parts.Now()
	for stop.Err() == nil {
		var b records
		on := false
		select {
		case b, on = <-s.records:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if !on {
			break
		}
		if err := s.step(ctx, b); err != nil {
			return fmt.Errorf("stage %s step %d: %w", s.stage.Name, b.step, err)
		}
		if global := s.at.offset + s.done; global%s.c.o.CheckpointEvery == 0 || s.done == s.stage.Steps {
			if err := s.save(ctx); err != nil {
				return err
			}
		}
	}
	if err := s.save(ctx); err != nil {
		return err
	}
	return s.saver.wait(ctx)
}

// step trains one batch of records.
func (s *supervised) step(ctx context.Context, b records) error {
	o := s.c.o
	u := &update{number: s.update + 1, rate: s.stage.rate(b.step-1, s.stage.Steps)}
	for _, g := range b.groups {
		u.examples = append(u.examples, &example{group: g})
	}
	started := o.Parts.Now()
	batch, err := u.batch(o.Parts.Plan)
	if err != nil {
		return err
	}
	err = bounded(ctx, await{fmt.Sprintf("trainer, load of update %d", u.number), o.Limits.Load, "the trainer's log"},
		func(ctx context.Context) error { return o.Parts.Backend.Load(ctx, batch) })
	if err != nil {
		return err
	}
	packed := o.Parts.Now()
	err = bounded(ctx, await{fmt.Sprintf("trainer, update %d", u.number), o.Limits.Train, "the trainer's log"},
		func(ctx context.Context) (err error) {
			u.report, err = o.Parts.Backend.Step(ctx, u.number, s.advantages(u, b.groups))
			return err
		})
	var bad *trainer.BadStepError
	switch {
	case err == nil:
		s.badSteps = 0
	case errors.As(err, &bad):
		u.bad = bad
		s.badSteps++
		o.Parts.Sink.Emit(telemetry.Alarm{Name: "bad_step", Step: s.at.offset + b.step, Message: bad.Error()})
	default:
		return err
	}
	s.update, s.done, s.cursor = u.number, b.step, b.cursor
	now := o.Parts.Now()
	if err := s.record(ctx, b, u, packed.Sub(started), now.Sub(packed)); err != nil {
		return err
	}
	if s.badSteps >= o.MaxBadSteps {
		return &BadStepsError{Count: s.badSteps, Last: u.bad}
	}
	return nil
}

func (s *supervised) advantages(u *update, groups []trainer.Group) trainer.Advantages {
	longest := 0
	a := trainer.Advantages{Values: make([][][]float32, len(groups))}
	for i, g := range groups {
		longest = max(longest, len(g.Traces[0].Tokens))
		a.Values[i] = [][]float32{{1}}
	}
	a.Options = trainer.StepOptions{
		Loss: trainer.NLL, Aggregation: s.stage.Aggregation, LearningRate: u.rate, GradClip: s.stage.GradClip, Temperature: 1,
		Denominators: denominators(groups, longest, nil),
	}
	return a
}

// record writes the metrics of a step and tells the watchers.
func (s *supervised) record(ctx context.Context, b records, u *update, pack, train time.Duration) error {
	o := s.c.o
	now := o.Parts.Now()
	v := telemetry.Metrics{}
	trainerValues(v, []*update{u}, false)
	for _, name := range []string{"kl/behaviour", "clip/low", "clip/high", "clip/dual",
		"rollout_gap/w_mean", "rollout_gap/w_max", "rollout_gap/truncated", "rollout_gap/kl"} {
		delete(v, name) // nothing was sampled
	}
	if u.bad == nil {
		v["entropy/mean"] = u.report.Entropy
	}
	v["seconds/pack"], v["seconds/train"] = pack.Seconds()+b.took.Seconds(), train.Seconds()
	v["seconds/step"] = now.Sub(s.lineAt).Seconds()
	s.lineAt = now
	if taken := s.saver.took(); taken > 0 {
		v["seconds/checkpoint"] = taken
	}
	v["memory/rss_bytes"] = resident()
	global := s.at.offset + b.step
	line := map[string]any{"step": int64(global), "stage": s.stage.Name, "time": now.UTC().Format(time.RFC3339Nano)}
	if err := putMetrics(ctx, o, "step", global, join(line, v)); err != nil {
		return err
	}
	o.Parts.Sink.Emit(telemetry.StepDone{Stage: s.stage.Name, Step: b.step, Global: global, Metrics: v, Time: now})
	return nil
}

// save takes a checkpoint of the step just done, unless there is one.
func (s *supervised) save(ctx context.Context) error {
	if s.done == s.saver.at || s.done == s.at.step {
		return nil
	}
	state := State{
		Version: stateVersion, Seed: s.c.o.Seed, Step: s.at.offset + s.done, Stage: s.stage.Name, StageStep: s.done,
		Update: s.update, BadSteps: s.badSteps, Cursor: s.cursor, Counts: s.start.counts, Shaper: s.start.shaper,
	}
	return s.saver.begin(ctx, request{step: s.done, state: state, reference: s.start.reference, pin: s.done == s.stage.Steps,
		complete: func(context.Context, *State) error { return nil }})
}
