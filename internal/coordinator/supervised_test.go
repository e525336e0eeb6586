package coordinator

import (
	"context"
	"errors"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
)

// taught is a run of one supervised stage, without fleet and scorer.
func taught(k *kit, _ *trainertest.Script) {
	k.options.Stages = []Stage{{Name: "sft", Kind: trainer.SFT, Steps: 7, Batch: 3, LearningRate: 0.05, Source: &listSource{records: 4}}}
	k.options.CheckpointEvery = 3
}

func TestSupervisedStage(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	k := mustKit(t, t.TempDir(), 1, taught)
	k.options.Parts.Scorer = nil
	r := k.finish(t)
	if r.Step != 7 || r.Counts != (Counts{}) {
		t.Errorf("ended with %+v", r)
	}
	var steps []int
	for _, s := range eventsOf[telemetry.CheckpointSaved](k.events) {
		steps = append(steps, s.Step)
	}
	if len(steps) != 3 || steps[0] != 3 || steps[2] != 7 {
		t.Errorf("checkpoints of steps %v, want 3, 6, 7", steps)
	}
	done := eventsOf[telemetry.StepDone](k.events)
	if first, last := done[0].Metrics["loss/total"], done[6].Metrics["loss/total"]; last >= first {
		t.Errorf("loss went from %v to %v", first, last)
	}
	for name := range done[0].Metrics {
		if strings.HasPrefix(name, "rollout") || strings.HasPrefix(name, "clip") || strings.HasPrefix(name, "uadt") {
			t.Errorf("metric %s in a stage that samples nothing", name)
		}
	}
}

// TestSupervisedStopAndResume stops after every step in turn.
func TestSupervisedStopAndResume(t *testing.T) {
	whole := mustKit(t, t.TempDir(), 1, taught)
	want := whole.finish(t)
	for at := 1; at < 7; at++ {
		dir := t.TempDir()
		k := mustKit(t, dir, 1, taught)
		admit, stop := context.WithCancel(t.Context())
		k.events.hook = func(e telemetry.Event) {
			if s, ok := e.(telemetry.StepDone); ok && s.Step == at {
				stop()
			}
		}
		r, err := k.run(patient(t), admit)
		stop()
		if !errors.Is(err, ErrStopped) || r.Step != at {
			t.Fatalf("stopped after step %d at %+v: %v", at, r, err)
		}
		k = mustKit(t, dir, 2, taught)
		sameRuns(t, want, k.finish(t), whole.store, k.store)
	}
}

// mute is an encoder that cannot read one record.
type mute struct {
	trainer.Encoder
	record string
	err    error
}

func (m mute) Encode(ctx context.Context, q rollout.Question, response string) (trainer.Encoded, error) {
	if q.ID == m.record {
		return trainer.Encoded{}, m.err
	}
	return m.Encoder.Encode(ctx, q, response)
}

func TestRecordThatCannotBeEncoded(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	k := mustKit(t, t.TempDir(), 1, taught)
	broken := errors.New("no such image")
	k.options.Parts.Encoder = mute{k.trainer, "q2", broken}
	_, err := k.run(patient(t), t.Context())
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "q2") {
		t.Errorf("got %v, want the encoder's error with the record's name", err)
	}
}

// dry is a source that ends.
type dry struct{ listSource }

var errDry = errors.New("no more records")

func (d *dry) Next(ctx context.Context) (rollout.Question, int, error) {
	if d.next == 5 {
		return rollout.Question{}, 0, errDry
	}
	return d.listSource.Next(ctx)
}

func TestSourceThatFails(t *testing.T) {
	for _, kind := range []trainer.StageKind{trainer.SFT, trainer.RL} {
		k := mustKit(t, t.TempDir(), 1, func(k *kit, _ *trainertest.Script) {
			k.options.Stages[0].Kind = kind
			k.options.Stages[0].Source = &dry{listSource{records: 10}}
		})
		if _, err := k.run(patient(t), t.Context()); !errors.Is(err, errDry) || !strings.Contains(err.Error(), "step 2") {
			t.Errorf("stage of kind %s: got %v, want the source's error at step 2", kind, err)
		}
	}
}

func TestBadRecordsStopTheStage(t *testing.T) {
	k := mustKit(t, t.TempDir(), 1, func(k *kit, s *trainertest.Script) {
		taught(k, s)
		s.Bad = []int{2, 3, 4}
	})
	var bad *BadStepsError
	if _, err := k.run(patient(t), t.Context()); !errors.As(err, &bad) || bad.Count != 3 {
		t.Errorf("got %v, want a stop after 3 refused updates", err)
	}
}
