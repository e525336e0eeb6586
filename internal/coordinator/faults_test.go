package coordinator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/rollouttest"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
)

// fullDisk is a store whose writes fail from the failAt-th on.
type fullDisk struct {
	*dirStore
	writes atomic.Int64
	failAt int64
}

var errFull = errors.New("no space left on device")

func (d *fullDisk) write() error {
	if n := d.writes.Add(1); d.failAt > 0 && n >= d.failAt {
		return errFull
	}
	return nil
}

func (d *fullDisk) PutRollout(ctx context.Context, step int, meta []byte, groups []rollout.Group) error {
	if err := d.write(); err != nil {
		return err
	}
	return d.dirStore.PutRollout(ctx, step, meta, groups)
}

func (d *fullDisk) PutLedger(ctx context.Context, step int, rows []map[string]any, arrays map[string][]float32) error {
	if err := d.write(); err != nil {
		return err
	}
	return d.dirStore.PutLedger(ctx, step, rows, arrays)
}

func (d *fullDisk) PutMetrics(ctx context.Context, kind string, step int, values map[string]any) error {
	if err := d.write(); err != nil {
		return err
	}
	return d.dirStore.PutMetrics(ctx, kind, step, values)
}

func (d *fullDisk) OpenCheckpoint(ctx context.Context, step int) (string, error) {
	if err := d.write(); err != nil {
		return "", err
	}
	return d.dirStore.OpenCheckpoint(ctx, step)
}

func (d *fullDisk) SealCheckpoint(ctx context.Context, step int, state []byte, pin bool) (string, error) {
	if err := d.write(); err != nil {
		return "", err
	}
	return d.dirStore.SealCheckpoint(ctx, step, state, pin)
}

// TestFullDisk fills the disk at every write in turn: the run ends with the
// disk's error, no goroutine is left, and once there is room it goes on to the
// same end.
func TestFullDisk(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	onDisk := func(failAt int64) func(k *kit, s *trainertest.Script) {
		return func(k *kit, s *trainertest.Script) {
			full(1)(k, s)
			disk := &fullDisk{dirStore: k.store, failAt: failAt}
			k.options.Parts.Store, k.options.Parts.Checkpoints = disk, disk
		}
	}
	whole := mustKit(t, t.TempDir(), 1, onDisk(0))
	want := whole.finish(t)
	total := whole.options.Parts.Store.(*fullDisk).writes.Load()
	if total < 40 {
		t.Fatalf("%d writes in a whole run", total)
	}
	for at := int64(1); at <= total; at += 3 {
		dir := t.TempDir()
		k := mustKit(t, dir, 1, onDisk(at))
		if _, err := k.run(patient(t), t.Context()); !errors.Is(err, errFull) {
			t.Fatalf("write %d of %d: got %v, want the disk's error", at, total, err)
		}
		k = mustKit(t, dir, 2, onDisk(0))
		sameRuns(t, want, k.finish(t), whole.store, k.store)
		if t.Failed() {
			t.Fatalf("the disk was full at write %d of %d", at, total)
		}
	}
}

// liar is a trainer that answers what it should not.
type liar struct {
	*trainertest.Scripted
	scores func(s *trainer.Scores)
	refuse string
	digest string // of published weights
	saved  func(s *trainer.Saved)
}

func (l liar) Load(ctx context.Context, b trainer.Batch) error {
	if l.refuse != "" {
		return &trainer.GroupError{Group: l.refuse, Err: errors.New("never seen")}
	}
	return l.Scripted.Load(ctx, b)
}

func (l liar) Score(ctx context.Context, n int, o trainer.ScoreOptions) (trainer.Scores, error) {
	s, err := l.Scripted.Score(ctx, n, o)
	if err == nil && l.scores != nil {
		l.scores(&s)
	}
	return s, err
}

func (l liar) Publish(ctx context.Context, p rollout.Policy) (rollout.Offer, error) {
	o, err := l.Scripted.Publish(ctx, p)
	if l.digest != "" {
		o.Policy.Digest = l.digest
	}
	return o, err
}

func (l liar) Save(ctx context.Context, dir string) (trainer.Pending, error) {
	p, err := l.Scripted.Save(ctx, dir)
	if err == nil && l.saved != nil {
		p = lyingPending{p, l.saved}
	}
	return p, err
}

type lyingPending struct {
	trainer.Pending
	saved func(s *trainer.Saved)
}

func (p lyingPending) Wait(ctx context.Context) (trainer.Saved, error) {
	s, err := p.Pending.Wait(ctx)
	p.saved(&s)
	return s, err
}

// TestTrainerIsNotBelieved: answers that do not fit end the run by name.
func TestTrainerIsNotBelieved(t *testing.T) {
	for name, test := range map[string]struct {
		lie  liar
		want string
	}{
		"a group of scores lost":  {liar{scores: func(s *trainer.Scores) { s.Old = s.Old[1:] }}, "old: 3 groups, want 4"},
		"a trace of scores lost":  {liar{scores: func(s *trainer.Scores) { s.Entropy[1] = s.Entropy[1][1:] }}, "entropy: group rl-1-1: 3 traces, want 4"},
		"a token of scores lost":  {liar{scores: func(s *trainer.Scores) { s.Old[0][2] = s.Old[0][2][1:] }}, "old: group rl-1-0 trace 2"},
		"a group that is not his": {liar{refuse: "someone"}, "does not have"},
		"another step was saved":  {liar{saved: func(s *trainer.Saved) { s.Step-- }}, "trainer saved update 1, want 2"},
	} {
		t.Run(name, func(t *testing.T) {
			k := mustKit(t, t.TempDir(), 1, nil)
			test.lie.Scripted = k.trainer
			k.options.Parts.Backend, k.options.Parts.Keeper = test.lie, test.lie
			_, err := k.run(patient(t), t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want it to say %q", err, test.want)
			}
		})
	}
}

// TestResumedWeightsAreChecked against the checkpoint's digest.
func TestResumedWeightsAreChecked(t *testing.T) {
	dir := t.TempDir()
	mustKit(t, dir, 1, nil).finish(t)
	k := mustKit(t, dir, 2, func(k *kit, _ *trainertest.Script) {
		k.options.Stages[0].Steps = 8
	})
	k.options.Parts.Keeper = liar{Scripted: k.trainer, digest: strings.Repeat("0", 64)}
	var refused *ResumeError
	if _, err := k.run(patient(t), t.Context()); !errors.As(err, &refused) || !strings.Contains(err.Error(), "000000") {
		t.Errorf("got %v, want a *ResumeError with the digest", err)
	}
}

func TestKLNeedsTheModelsDigest(t *testing.T) {
	k := mustKit(t, t.TempDir(), 1, func(k *kit, _ *trainertest.Script) {
		k.options.ModelDigest = ""
		k.options.RL.Loss.KL = trainer.KL{Kind: trainer.K3, Coef: 0.1}
	})
	if _, err := k.run(patient(t), t.Context()); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Errorf("got %v, want an error about the digest", err)
	}
}

// TestGroupThatNoPlanCanPlace is dropped like one that the trainer refuses.
func TestGroupThatNoPlanCanPlace(t *testing.T) {
	k := mustKit(t, t.TempDir(), 1, func(k *kit, _ *trainertest.Script) {
		k.options.Stages[0].Steps = 2
		k.options.Parts.Plan = func(groups []trainer.Group) (trainer.Plan, error) {
			for _, g := range groups {
				if g.ID == "rl-1-3" {
					return trainer.Plan{}, &trainer.GroupError{Group: g.ID, Err: errors.New("too long")}
				}
			}
			return trainer.NewPlan(groups, 1, 0)
		}
	})
	r := k.finish(t)
	if want := (Counts{Admitted: 8, Trained: 7, Dropped: 1}); r.Counts != want {
		t.Errorf("counts %+v, want %+v", r.Counts, want)
	}
	dropped := eventsOf[telemetry.GroupDropped](k.events)
	if len(dropped) != 1 || dropped[0].Job != "rl-1-3" || dropped[0].Reason != string(rollout.ReasonEncoding) {
		t.Errorf("dropped %+v", dropped)
	}
	broken := errors.New("no ranks")
	k = mustKit(t, t.TempDir(), 1, func(k *kit, _ *trainertest.Script) {
		k.options.Parts.Plan = func([]trainer.Group) (trainer.Plan, error) { return trainer.Plan{}, broken }
	})
	if _, err := k.run(patient(t), t.Context()); !errors.Is(err, broken) {
		t.Errorf("got %v, want the planner's error", err)
	}
}

// TestQuorumIsNeeded: a policy that too few servers adopt ends the run.
func TestQuorumIsNeeded(t *testing.T) {
	k := mustKit(t, t.TempDir(), 1, nil)
	fleet := rollouttest.NewScripted(rollouttest.Script{Servers: []string{"a", "b"}, Quorum: 1})
	k.options.Parts.Fleet = fleet
	fleet.FailAdopt("a", 1)
	k.options.Stages[0].Steps = 2
	k.finish(t)
	if adopted := eventsOf[telemetry.PolicyAdopted](k.events); adopted[0].Failed != 1 || adopted[1].Failed != 0 || adopted[0].Servers != 2 {
		t.Errorf("adoptions %+v, want one failure in the first", adopted)
	}
	k = mustKit(t, t.TempDir(), 1, nil)
	k.fleet.FailAdopt("scripted-0", 1)
	var quorum *rollout.QuorumError
	if _, err := k.run(patient(t), t.Context()); !errors.As(err, &quorum) || quorum.Need != 1 {
		t.Errorf("got %v, want a *rollout.QuorumError", err)
	}
}

// TestEvents: what watchers are told of a run, in order and in full.
func TestEvents(t *testing.T) {
	k := mustKit(t, t.TempDir(), 5, func(k *kit, _ *trainertest.Script) { k.options.Stages[0].Steps = 2 })
	r := k.finish(t)
	var kinds []string
	for _, e := range k.events.all {
		switch e.(type) {
		case telemetry.RolloutProgress, telemetry.PolicyAdopted, telemetry.Alarm:
			continue
		}
		kinds = append(kinds, strings.TrimPrefix(fmt.Sprintf("%T", e), "telemetry."))
	}
	if got := strings.Join(kinds, " "); got != "RunStarted StageStarted StepDone StepDone CheckpointSaved RunEnded" {
		t.Errorf("events %s", got)
	}
	started, ended := eventsOf[telemetry.RunStarted](k.events)[0], eventsOf[telemetry.RunEnded](k.events)[0]
	if started.Incarnation != 5 || started.Resumed || len(started.Stages) != 1 || started.Stages[0].Steps != 2 {
		t.Errorf("started %+v", started)
	}
	if !ended.Finished || ended.Digest != r.Digest || ended.Step != 2 {
		t.Errorf("ended %+v", ended)
	}
	progress := eventsOf[telemetry.RolloutProgress](k.events)
	if len(progress) != 8 || progress[3] != (telemetry.RolloutProgress{Stage: "rl", Step: 1, Done: 4, All: 4}) {
		t.Errorf("%d events of progress, the fourth %+v", len(progress), progress[3])
	}
}
