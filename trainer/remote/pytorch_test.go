//go:build pytorch

package remote

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
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

// TestPublishForBroadcastsPyTorch: two ranks publish for broadcasts what they
// save, rank 0 takes requests, and only from who knows the token.
func TestPublishForBroadcastsPyTorch(t *testing.T) {
	k := newModelKit(t, "broadcast-ranks")
	launch := k.launch(t, python(t))
	made, err := New(t.Context(), Options{
		Conn: k.conn, Scope: bus.Scope{Run: k.run, Incarnation: 1}, Ranks: 2, Launch: &launch, Weights: rollout.ByNCCL,
	})
	must(t, err)
	defer func() { must(t, made.Close()) }()
	must(t, made.Begin(t.Context(), trainer.Stage{Incarnation: 1, Name: "rl", Kind: trainer.RL, Model: k.model}))
	first, err := made.Publish(t.Context(), rollout.Policy{Incarnation: 1, Version: 0})
	must(t, err)
	if first.Policy.Digest != k.digest {
		t.Errorf("published %s, want the digest of the model, %s", first.Policy.Digest, k.digest)
	}
	k.step(t, made, 1)
	second, err := made.Publish(t.Context(), rollout.Policy{Incarnation: 1, Version: 1})
	must(t, err)
	pending, err := made.Save(t.Context(), filepath.Join(t.TempDir(), "saved"))
	must(t, err)
	saved, err := pending.Wait(t.Context())
	must(t, err)
	if saved.Digest != second.Policy.Digest || *second.NCCL != *first.NCCL {
		t.Errorf("published %s at %s, saved %s; before at %s", second.Policy.Digest, second.NCCL.URL, saved.Digest, first.NCCL.URL)
	}
	for token, want := range map[string]int{second.NCCL.Token: http.StatusNotFound, "a guess": http.StatusUnauthorized} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, second.NCCL.URL+"/send", strings.NewReader(`{"group":"g","seconds":1}`))
		must(t, err)
		request.Header.Set("Authorization", "Bearer "+token)
		response, err := http.DefaultClient.Do(request)
		must(t, err)
		must(t, response.Body.Close())
		if response.StatusCode != want {
			t.Errorf("status %d, want %d", response.StatusCode, want)
		}
	}
}
