package coordinator

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
)

// TestBounded: a deadline that passes becomes an error with a name; what ends
// for another reason keeps it.
func TestBounded(t *testing.T) {
	w := await{what: "the moon", limit: time.Nanosecond, look: "the sky"}
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	var late *TimeoutError
	err := bounded(t.Context(), w, hang)
	if !errors.As(err, &late) || late.What != "the moon" || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want a *TimeoutError of the moon", err)
	}
	if text := err.Error(); !strings.Contains(text, "the moon") || !strings.Contains(text, "1ns") || !strings.Contains(text, "the sky") {
		t.Errorf("%q does not say what, how long and where to look", text)
	}
	w.limit = time.Hour
	broken := errors.New("broken")
	if err := bounded(t.Context(), w, func(context.Context) error { return broken }); !errors.Is(err, broken) || errors.As(err, &late) {
		t.Errorf("got %v, want the error of the call", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := bounded(ctx, w, hang); !errors.Is(err, context.Canceled) || errors.As(err, &late) {
		t.Errorf("got %v, want the end of the caller's context", err)
	}
}

// TestEveryWaitHasAName hangs one part at a time.
func TestEveryWaitHasAName(t *testing.T) {
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	tests := map[string]struct {
		change func(k *kit, s *trainertest.Script)
		what   string
	}{
		"step": {func(k *kit, s *trainertest.Script) {
			s.OnStep = func(ctx context.Context, _ int) error { return hang(ctx) }
			k.options.Limits.Train = time.Millisecond
		}, "trainer, update 1"},
		"checkpoint": {func(k *kit, s *trainertest.Script) {
			s.OnWait = func(ctx context.Context, _ int) error { return hang(ctx) }
			k.options.Limits.Save = 100 * time.Millisecond
		}, "trainer, checkpoint 2"},
		"adoption": {func(k *kit, _ *trainertest.Script) {
			k.options.Parts.Fleet = hangingFleet{Fleet: k.fleet, adopt: true}
			k.options.Limits.Adopt = time.Millisecond
		}, "adoption by the fleet"},
		"commit": {func(k *kit, _ *trainertest.Script) {
			k.options.Parts.Fleet = hangingFleet{Fleet: k.fleet}
			k.options.Limits.Commit = time.Millisecond
		}, "fleet, commit of step 1"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			k := mustKit(t, t.TempDir(), 1, test.change)
			_, err := k.run(patient(t), t.Context())
			var late *TimeoutError
			if !errors.As(err, &late) || !strings.Contains(late.What, test.what) {
				t.Errorf("got %v, want a *TimeoutError of %q", err, test.what)
			}
		})
	}
}

// hangingFleet never answers Commit, or Adopt.
type hangingFleet struct {
	rollout.Fleet
	adopt bool
}

func (f hangingFleet) Adopt(ctx context.Context, o rollout.Offer) (rollout.Adopted, error) {
	if !f.adopt {
		return f.Fleet.Adopt(ctx, o)
	}
	<-ctx.Done()
	return rollout.Adopted{}, ctx.Err()
}

func (f hangingFleet) Commit(ctx context.Context, _ []rollout.JobID) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestJobThatIsNotAnsweredIsDropped at its deadline, and the run goes on.
func TestJobThatIsNotAnsweredIsDropped(t *testing.T) {
	k := mustKit(t, t.TempDir(), 1, func(k *kit, _ *trainertest.Script) {
		k.options.Stages[0].Steps = 1
		k.options.Limits.Sample = 200 * time.Millisecond
		k.options.Parts.Fleet = deafFleet{k.fleet, "rl-1-2"}
	})
	r := k.finish(t)
	if want := (Counts{Admitted: 5, Trained: 4, Dropped: 1}); r.Counts != want {
		t.Errorf("counts %+v, want %+v", r.Counts, want)
	}
}

// deafFleet never answers one job, nor minds its deadline.
type deafFleet struct {
	rollout.Fleet
	job rollout.JobID
}

func (f deafFleet) Sample(ctx context.Context, job rollout.Job) (rollout.Group, error) {
	if job.ID != f.job {
		return f.Fleet.Sample(ctx, job)
	}
	<-ctx.Done()
	return rollout.Group{}, ctx.Err()
}

func TestCrewEndsWithItsFirstError(t *testing.T) {
	first := errors.New("first")
	c := newCrew(t.Context())
	c.run(func(context.Context) error { return first })
	c.run(func(ctx context.Context) error { <-ctx.Done(); return errors.New("second") })
	if err := c.wait(); !errors.Is(err, first) {
		t.Errorf("got %v, want the first error", err)
	}
	if err := newCrew(t.Context()).wait(); err != nil {
		t.Errorf("an idle crew ended with %v", err)
	}
}

func TestSlots(t *testing.T) {
	s := newSlots(2)
	for range 2 {
		if err := s.charge(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
	}
	got := make(chan error, 2)
	go func() { got <- s.charge(t.Context(), 2) }()
	s.drop(1)
	if err := <-got; err != nil {
		t.Errorf("a drop freed no slot: %v", err)
	}
	go func() { got <- s.charge(t.Context(), 3) }()
	s.live(0) // frees nothing: step 1 is not live
	s.live(1)
	if err := <-got; err != nil {
		t.Errorf("weights that are live freed no slot: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.charge(ctx, 4); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v with all slots charged, want the end of the context", err)
	}
	s.live(3)
	if s.free != 2 {
		t.Errorf("%d slots are free at the end, want 2", s.free)
	}
}

func TestBooks(t *testing.T) {
	var b books
	b.admit(5)
	b.drop(2)
	b.train(2)
	c, err := b.counts()
	if want := (Counts{Admitted: 5, Trained: 2, Dropped: 2, InFlight: 1}); err != nil || c != want {
		t.Errorf("counts %+v (%v), want %+v", c, err, want)
	}
	b.train(2)
	var broken *CountError
	if _, err := b.counts(); !errors.As(err, &broken) || !strings.Contains(err.Error(), "in flight -1") {
		t.Errorf("got %v for more trained than admitted, want a *CountError", err)
	}
}

func TestOptionsReportEverything(t *testing.T) {
	_, err := New(Options{
		CheckpointEvery: -1,
		Stages: []Stage{
			{Name: "a b", Kind: "rest", Steps: 0, Batch: 0, LearningRate: -1},
			{Name: "rl", Kind: trainer.RL, Steps: 1, Batch: 1},
			{Name: "rl", Kind: trainer.SFT, Steps: 1, Batch: 1},
		},
		RL: RL{RewardKL: 1, MaxStaleness: -1, Loss: trainer.StepOptions{KL: trainer.KL{Kind: trainer.K1}}},
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range []string{"cadence", "no trainer backend", "no keeper", "no store", "checkpoints", `"a b"`, `"rest"`, "0 steps",
		"0 questions", "learning rate -1", "no source", "no encoder", "no fleet", "no scorer", "groups of 0", "max_tokens", "temperature",
		"max_staleness", "both in the reward and in the loss", "k1", "uadt.rule", "grpo.advantage"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error says nothing of %q:\n%v", part, err)
		}
	}
}
