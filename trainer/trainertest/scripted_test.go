package trainertest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestScriptedConforms(t *testing.T) {
	model := t.TempDir()
	if err := initial().writeModel(model); err != nil {
		t.Fatal(err)
	}
	for _, ranks := range []int{1, 3} {
		Run(t, Setup{
			Model: model, Digest: InitialDigest(), Ranks: ranks,
			Open: func(t *testing.T) Trainer {
				s := NewScripted(Script{Root: t.TempDir()})
				return Trainer{s, s}
			},
		})
	}
}

// TestAnyChangeOfOrderShows swaps, repeats and leaves out steps: every time the
// digest differs, which is what the tests of the ring rely on.
func TestAnyChangeOfOrderShows(t *testing.T) {
	run := func(order ...int) string {
		s := NewScripted(Script{Root: t.TempDir()})
		d := &desk{t: t, s: Setup{Groups: Groups, Ranks: 1, LearningRate: 1e-3}, Trainer: Trainer{s, s}, ctx: t.Context()}
		d.begin(nil)
		for n, of := range order {
			b := d.batch(of, 0)
			a := d.advantages(b)
			b.Step = n + 1
			d.load(b)
			d.step(n+1, a)
		}
		return d.digest(0)
	}
	seen := map[string][]int{}
	for _, order := range [][]int{{1, 2, 3}, {1, 3, 2}, {2, 1, 3}, {1, 2}, {1, 2, 3, 3}, {1, 1, 2, 3}, {1, 3}} {
		digest := run(order...)
		if other, ok := seen[digest]; ok {
			t.Errorf("orders %v and %v end with the same weights", order, other)
		}
		seen[digest] = order
	}
	if first, again := run(1, 2, 3), run(1, 2, 3); first != again {
		t.Error("the same order ends with other weights")
	}
}

func TestScriptedFaults(t *testing.T) {
	broken := errors.New("broken")
	s := NewScripted(Script{
		Root: t.TempDir(), Refuse: []string{"s1-g2"}, Bad: []int{1},
		OnStep: func(_ context.Context, step int) error {
			if step == 2 {
				return broken
			}
			return nil
		},
		OnWait: func(context.Context, int) error { return broken },
	})
	d := &desk{t: t, s: Setup{Groups: Groups, Ranks: 1, LearningRate: 1e-3}, Trainer: Trainer{s, s}, ctx: t.Context()}
	d.begin(nil)
	b := d.batch(1, 0)
	var refused *trainer.GroupError
	if err := d.Load(d.ctx, b); !errors.As(err, &refused) || refused.Group != "s1-g2" {
		t.Errorf("load: %v, want group s1-g2 refused", err)
	}
	b = d.batch(4, 0)
	b.Step = 1
	d.load(b)
	var bad *trainer.BadStepError
	if _, err := d.Step(d.ctx, 1, d.advantages(b)); !errors.As(err, &bad) {
		t.Errorf("step 1: %v, want a *BadStepError", err)
	}
	if d.digest(0) != InitialDigest() {
		t.Error("a bad step changed the weights")
	}
	if _, err := d.Step(d.ctx, 2, d.advantages(b)); !errors.Is(err, broken) {
		t.Errorf("step 2: %v, want the scripted error", err)
	}
	pending, err := d.Save(d.ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pending.Wait(d.ctx); !errors.Is(err, broken) {
		t.Errorf("wait: %v, want the scripted error", err)
	}
}

func TestPublishedFiles(t *testing.T) {
	root := t.TempDir()
	s := NewScripted(Script{Root: root})
	d := &desk{t: t, s: Setup{}, Trainer: Trainer{s, s}, ctx: t.Context()}
	d.begin(nil)
	var offers []rollout.Offer
	for v := range 4 {
		offers = append(offers, d.publish(v))
	}
	for v, o := range offers {
		_, err := os.Stat(filepath.Join(o.Path, modelFile))
		if gone := os.IsNotExist(err); gone != (v < 2) {
			t.Errorf("files of version %d: %v, want only the last two", v, err)
		}
	}
}

func TestEncode(t *testing.T) {
	e, err := NewScripted(Script{}).Encode(t.Context(), rollout.Question{Text: "a"}, "bc")
	if err != nil || len(e.Prompt) != 3 || len(e.Response) != 3 || e.Response[2] != EOS {
		t.Errorf("encoded %+v, %v", e, err)
	}
}

func TestPlanIsChecked(t *testing.T) {
	s := NewScripted(Script{Root: t.TempDir()})
	d := &desk{t: t, s: Setup{Groups: Groups, Ranks: 1}, Trainer: Trainer{s, s}, ctx: t.Context()}
	d.begin(nil)
	b := d.batch(1, 0)
	b.Plan.Parts = b.Plan.Parts[1:]
	if err := d.Load(d.ctx, b); err == nil {
		t.Error("a plan that leaves a group out was taken")
	}
}
