package coordinator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/rollouttest"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
)

// full makes the ring do everything at once: two stages, evaluation, dynamic
// sampling, refills, KL, several updates a step.
func full(staleness int) func(k *kit, script *trainertest.Script) {
	return func(k *kit, script *trainertest.Script) {
		o := &k.options
		rl := o.Stages[0]
		rl.Steps = 8
		o.Stages = []Stage{
			{Name: "sft", Kind: trainer.SFT, Steps: 3, Batch: 3, LearningRate: 0.02, Source: &listSource{records: 5}},
			rl,
		}
		o.RL.MaxStaleness = staleness
		o.RL.DropZeroVariance = true
		o.RL.Updates = 2
		o.RL.Loss.KL = trainer.KL{Kind: trainer.K3, Coef: 0.1}
		o.RL.UADT.Placebo = "within"
		o.Eval = Eval{Every: 3, Samples: 2, Greedy: true, Questions: []rollout.Question{question(100), question(101)}}
		k.fleet.Inject("rl-2-1", rollouttest.Fault{Drop: rollout.ReasonRefused, Times: -1})
		k.fleet.Inject("rl-4-0", rollouttest.Fault{Mangle: rollouttest.Garbage, Times: -1})
		script.Refuse = []string{"rl-5-2"}
		script.Bad = []int{9}
	}
}

// TestStopAndResume asks a run to stop at every event in turn, resumes it, and
// compares it with one that was never asked.
func TestStopAndResume(t *testing.T) {
	for staleness := range 3 {
		t.Run(fmt.Sprint("staleness ", staleness), func(t *testing.T) {
			whole := mustKit(t, t.TempDir(), 1, full(staleness))
			want := whole.finish(t)
			total := len(whole.events.all)
			for at := 1; at < total; at += max(1, total/23) {
				stopAndResume(t, at, staleness, want, whole.store)
				if t.Failed() {
					t.Fatalf("stopped at event %d of %d", at, total)
				}
			}
		})
	}
}

func stopAndResume(t *testing.T, at, staleness int, want Result, wantStore *dirStore) {
	t.Helper()
	dir := t.TempDir()
	k := mustKit(t, dir, 1, full(staleness))
	admit, stop := context.WithCancel(t.Context())
	defer stop()
	seen := 0
	k.events.hook = func(telemetry.Event) {
		k.events.mu.Lock()
		defer k.events.mu.Unlock()
		if seen++; seen == at {
			stop()
		}
	}
	stopped, err := k.run(patient(t), admit)
	if err != nil && !errors.Is(err, ErrStopped) {
		t.Fatalf("stop: %v", err)
	}
	if err != nil {
		// What was sampled is durable and what was trained is checkpointed.
		last := eventsOf[telemetry.StepDone](k.events)
		if n := len(last); n > 0 && last[n-1].Global != stopped.Step {
			t.Errorf("stopped with a checkpoint of step %d, but step %d was trained", stopped.Step, last[n-1].Global)
		}
		k = mustKit(t, dir, 2, full(staleness))
		stopped = k.finish(t)
	}
	sameRuns(t, want, stopped, wantStore, k.store)
}

// TestSecondStopIsAtOnce ends the work context while a step is held.
func TestSecondStopIsAtOnce(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	dir := t.TempDir()
	held := make(chan struct{})
	ctx, cancel := context.WithCancelCause(t.Context())
	k := mustKit(t, dir, 1, func(k *kit, s *trainertest.Script) {
		s.OnStep = func(ctx context.Context, step int) error {
			if step != 3 {
				return nil
			}
			close(held)
			<-ctx.Done()
			return ctx.Err()
		}
	})
	interrupted := errors.New("interrupted twice")
	go func() { <-held; cancel(interrupted) }()
	if _, err := k.run(ctx, t.Context()); !errors.Is(err, interrupted) {
		t.Fatalf("run ended with %v, want the cause of its context", err)
	}
	whole := mustKit(t, t.TempDir(), 1, nil)
	want := whole.finish(t)
	k = mustKit(t, dir, 2, nil)
	sameRuns(t, want, k.finish(t), whole.store, k.store)
}

// TestRecordedBatchesAreNotSampledAgain resumes from checkpoint 2 with the
// batches of steps 3 to 6 durable: nothing reaches the fleet.
func TestRecordedBatchesAreNotSampledAgain(t *testing.T) {
	dir := t.TempDir()
	first := mustKit(t, dir, 1, nil)
	want := first.finish(t)
	for _, step := range []int{4, 6} {
		if err := os.Remove(filepath.Join(dir, fmt.Sprintf("checkpoints/step-%04d/manifest.json", step))); err != nil {
			t.Fatal(err)
		}
	}
	second := mustKit(t, dir, 2, nil)
	sameRuns(t, want, second.finish(t), first.store, second.store)
	for n := 1; n <= 6; n++ {
		for i := range 4 {
			if job := rollout.JobID(fmt.Sprintf("rl-%d-%d", n, i)); second.fleet.Sampled(job) != 0 {
				t.Errorf("job %s was sampled again", job)
			}
		}
	}
	if n := len(eventsOf[telemetry.StepDone](second.events)); n != 4 {
		t.Errorf("%d steps were executed again, want 4", n)
	}
}

// TestJobsInFlightAreAdmittedAgain loses the batches after checkpoint 4: the
// same jobs are sampled with the same seeds, and nothing else changes.
func TestJobsInFlightAreAdmittedAgain(t *testing.T) {
	dir := t.TempDir()
	first := mustKit(t, dir, 1, nil)
	want := first.finish(t)
	if err := os.Remove(filepath.Join(dir, "checkpoints/step-0006/manifest.json")); err != nil {
		t.Fatal(err)
	}
	for _, step := range []int{5, 6} {
		if err := os.Remove(filepath.Join(dir, fmt.Sprintf("rollouts/%d.json", step))); err != nil {
			t.Fatal(err)
		}
	}
	second := mustKit(t, dir, 2, nil)
	sameRuns(t, want, second.finish(t), first.store, second.store)
	for _, job := range []rollout.JobID{"rl-5-0", "rl-6-3"} {
		if second.fleet.Sampled(job) != 1 {
			t.Errorf("job %s was sampled %d times after the resume, want once", job, second.fleet.Sampled(job))
		}
	}
	if second.fleet.Policies()[0].Incarnation != 2 {
		t.Errorf("first policy after the resume is %s, want one of incarnation 2", second.fleet.Policies()[0])
	}
}

func TestResumeRefusesWhatDoesNotFit(t *testing.T) {
	dir := t.TempDir()
	mustKit(t, dir, 1, nil).finish(t)
	tests := map[string]func(k *kit){
		"another seed":       func(k *kit) { k.options.Seed = 8 },
		"another stage":      func(k *kit) { k.options.Stages[0].Name = "rl2" },
		"a shorter stage":    func(k *kit) { k.options.Stages[0].Steps = 5 },
		"state that is none": func(k *kit) { k.options.Resume.State = []byte(`{"version":1,"unheard_of":2}`) },
		"a later version":    func(k *kit) { k.options.Resume.State = []byte(`{"version":2}`) },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			k := mustKit(t, dir, 2, nil)
			change(k)
			var refused *ResumeError
			if _, err := k.run(patient(t), t.Context()); !errors.As(err, &refused) {
				t.Errorf("got %v, want a *ResumeError", err)
			}
		})
	}
}

// TestLostBatchIsNamed removes a batch that an older policy sampled.
func TestLostBatchIsNamed(t *testing.T) {
	dir := t.TempDir()
	ahead := func(k *kit, _ *trainertest.Script) { k.options.RL.MaxStaleness = 1 }
	mustKit(t, dir, 1, ahead).finish(t)
	for _, name := range []string{"checkpoints/step-0006/manifest.json", "rollouts/5.json"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	var refused *ResumeError
	if _, err := mustKit(t, dir, 2, ahead).run(patient(t), t.Context()); !errors.As(err, &refused) {
		t.Errorf("got %v, want a *ResumeError", err)
	}
}

// TestMoreStepsThanBefore extends a finished stage.
func TestMoreStepsThanBefore(t *testing.T) {
	for staleness := range 3 {
		dir := t.TempDir()
		change := func(steps int) func(k *kit, _ *trainertest.Script) {
			return func(k *kit, _ *trainertest.Script) {
				k.options.RL.MaxStaleness = staleness
				k.options.Stages[0].Steps, k.options.Stages[0].Decay = steps, trainer.DecayConstant
			}
		}
		mustKit(t, dir, 1, change(3)).finish(t)
		r := mustKit(t, dir, 2, change(7)).finish(t)
		if r.Step != 7 || r.Counts.Trained != 28 {
			t.Errorf("staleness %d: ended at %+v, want step 7 with 28 trained groups", staleness, r)
		}
	}
}

// TestResumedStageKnowsItsStart: with KL or without, a trainer is told where the
// stage began, to which adapters are added; KL alone makes it the reference.
func TestResumedStageKnowsItsStart(t *testing.T) {
	for _, kl := range []bool{true, false} {
		dir := t.TempDir()
		change := func(k *kit, script *trainertest.Script) {
			full(0)(k, script)
			if !kl {
				k.options.RL.Loss.KL = trainer.KL{}
			}
		}
		k := mustKit(t, dir, 1, change)
		k.runTo(t, 5)
		k = mustKit(t, dir, 2, change)
		c := &calls{Scripted: k.trainer}
		k.options.Parts.Backend, k.options.Parts.Keeper = c, c
		k.finish(t)
		start := filepath.Join(dir, "checkpoints", "step-0003", "policy")
		rl := c.stages[0]
		if rl.Name != "rl" || rl.Resume == "" || rl.Model != start || (rl.Reference != nil) != kl {
			t.Errorf("KL %v: began %+v, want a stage that started from %s", kl, rl, start)
		}
	}
}

// runTo runs until a step is done and no new one is admitted.
func (k *kit) runTo(t *testing.T, step int) {
	t.Helper()
	admit, stop := context.WithCancel(t.Context())
	defer stop()
	k.events.hook = func(e telemetry.Event) {
		if s, ok := e.(telemetry.StepDone); ok && s.Global == step {
			stop()
		}
	}
	if _, err := k.run(patient(t), admit); !errors.Is(err, ErrStopped) {
		t.Fatal(err)
	}
}

// TestMovedRunResumes: the reference is a checkpoint of the run itself, and
// goes with it.
func TestMovedRunResumes(t *testing.T) {
	whole := mustKit(t, t.TempDir(), 1, full(0))
	want := whole.finish(t)
	before, after := filepath.Join(t.TempDir(), "before"), filepath.Join(t.TempDir(), "after")
	k := mustKit(t, before, 1, full(0))
	k.runTo(t, 5)
	if err := os.Rename(before, after); err != nil {
		t.Fatal(err)
	}
	k = mustKit(t, after, 2, full(0))
	sameRuns(t, want, k.finish(t), whole.store, k.store)
	state := State{Reference: &trainer.Reference{Path: "models/x"}}
	if r, here := relative(state.Reference, "/runs/checkpoints"); here || r != state.Reference || state.reference("/runs") != state.Reference {
		t.Errorf("a path as the user wrote it was changed to %s", r.Path)
	}
}
