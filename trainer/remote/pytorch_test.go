//go:build pytorch

package remote

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
)

// python is the interpreter that UADT_PYTHON names.
func python(t *testing.T) string {
	t.Helper()
	path := os.Getenv("UADT_PYTHON")
	if path == "" {
		t.Fatal("UADT_PYTHON must name a Python with PyTorch, transformers and nats-py")
	}
	return path
}

// TestConformancePyTorch runs the suite of the seam on PyTorch processes that
// outlive the coordinators: every Open is a new coordinator, with a higher
// incarnation, on the same ranks.
func TestConformancePyTorch(t *testing.T) {
	for _, set := range []struct {
		ranks    int
		sharding string
	}{{1, "none"}, {2, "none"}, {2, "full"}} {
		ranks := set.ranks
		t.Run(fmt.Sprintf("%d ranks, sharding %s", ranks, set.sharding), func(t *testing.T) {
			k := newModelKit(t, "conformance")
			launch := k.launch(t, python(t))
			launch.Sharding = set.sharding
			set, err := launch.start(k.run, ranks)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				set.kill()
				if t.Failed() {
					showLogs(t, launch.Logs)
				}
			})
			var incarnation atomic.Uint64
			trainertest.Run(t, trainertest.Setup{
				Model: k.model, Digest: k.digest, Ranks: ranks, Groups: k.groups, BadToken: 100_000, AllowLeaks: true, // the bus server is in this process
				// Two ranks add up gradients in another order than one micro-batch does.
				Tolerance: 1e-4,
				Open: func(t *testing.T) trainertest.Trainer {
					made, err := New(t.Context(), Options{Conn: k.conn, Scope: bus.Scope{Run: k.run, Incarnation: incarnation.Add(1)}, Ranks: ranks})
					if err != nil {
						t.Fatal(err)
					}
					return trainertest.Trainer{Backend: made, Keeper: made}
				},
			})
		})
	}
}

// TestLaunchPyTorch starts ranks as a local run does, loses them, and goes on
// with others from the checkpoint.
func TestLaunchPyTorch(t *testing.T) {
	k := newModelKit(t, "launch")
	launch := k.launch(t, python(t))
	made, err := New(t.Context(), Options{Conn: k.conn, Scope: bus.Scope{Run: k.run, Incarnation: 1}, Launch: &launch})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), trainertest.Patience)
	defer cancel()
	stage := trainer.Stage{Incarnation: 1, Name: "rl", Kind: trainer.RL, Model: k.model}
	must(t, made.Begin(ctx, stage))
	k.step(t, made, 1)
	dir := filepath.Join(t.TempDir(), "saved")
	pending, err := made.Save(ctx, dir)
	must(t, err)
	saved, err := pending.Wait(ctx)
	must(t, err)
	want := k.step(t, made, 2)

	must(t, made.local.commands[0].Process.Kill())
	<-made.local.exits()
	if _, err := made.Score(ctx, 3, trainer.ScoreOptions{Temperature: 1}); err == nil {
		t.Fatal("score on a killed rank: no error")
	}
	stage.Resume, stage.Step = dir, saved.Step
	must(t, made.Begin(ctx, stage))
	if got := k.step(t, made, 2); got.Loss != want.Loss || got.GradNorm != want.GradNorm {
		t.Errorf("step 2 after the loss of the rank: loss %v, norm %v, before %v, %v", got.Loss, got.GradNorm, want.Loss, want.GradNorm)
	}
	must(t, made.Close())
	if _, why := made.local.ended(); why != "its process ended" {
		t.Errorf("the rank did not end in order: %s", why)
	}
}
