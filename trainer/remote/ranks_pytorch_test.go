//go:build pytorch

package remote

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
)

// TestTorchrunPyTorch drives ranks that torchrun started, as on machines of
// their own: they meet by its rendezvous and agree on the name of their set.
func TestTorchrunPyTorch(t *testing.T) {
	k := newModelKit(t, "torchrun")
	launch := k.launch(t, python(t))
	ctx, cancel := context.WithTimeout(t.Context(), trainertest.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, launch.Python, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2",
		"-m", "uadt_trainer", "--bus", launch.Bus, "--run-name", k.run, "--work", launch.Work, "--device", "cpu", "--threads", "1", "--sharding", "full")
	cmd.Env = append(append(os.Environ(), "PYTHONPATH="+launch.Package), launch.Environment...)
	output, err := os.Create(filepath.Join(launch.Logs, "torchrun.log"))
	must(t, err)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // torchrun ends its ranks
	must(t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = errors.Join(cmd.Wait(), output.Close()) // its output says why
		cancel()                                    // nobody is left to wait for
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})

	made, err := New(ctx, Options{Conn: k.conn, Scope: bus.Scope{Run: k.run, Incarnation: 1}, Ranks: 2})
	must(t, err)
	must(t, made.Begin(ctx, trainer.Stage{Incarnation: 1, Name: "rl", Kind: trainer.RL, Model: k.model}))
	if report := k.step(t, made, 1); report.GradNorm <= 0 {
		t.Errorf("gradient norm %v", report.GradNorm)
	}
	offer, err := made.Publish(ctx, rollout.Policy{Incarnation: 1, Version: 1})
	must(t, err)
	if offer.Policy.Digest == k.digest {
		t.Error("the step moved no weights")
	}
	must(t, made.Close())
	if ctx.Err() != nil {
		t.Error("the ranks ended with their coordinator; they are to keep what they hold for the next")
	}
}

// TestHungRankPyTorch stops one of two ranks that hold half of the weights
// each: the other waits for its half no longer than collectives may take.
func TestHungRankPyTorch(t *testing.T) {
	k := newModelKit(t, "hung")
	launch := k.launch(t, python(t))
	launch.Sharding, launch.Collective = "full", 5*time.Second
	made, err := New(t.Context(), Options{Conn: k.conn, Scope: bus.Scope{Run: k.run, Incarnation: 1}, Ranks: 2, Launch: &launch, Silence: time.Hour})
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), trainertest.Patience)
	defer cancel()
	stage := trainer.Stage{Incarnation: 1, Name: "rl", Kind: trainer.RL, Model: k.model}
	must(t, made.Begin(ctx, stage))
	groups := k.groups(1)
	plan, err := trainer.NewPlan(groups, 2, 0)
	must(t, err)
	must(t, made.Load(ctx, trainer.Batch{Step: 1, Groups: groups, Plan: plan}))
	must(t, made.local.commands[1].Process.Signal(syscall.SIGSTOP))
	_, err = made.Score(ctx, 1, trainer.ScoreOptions{Temperature: 1})
	wantLost(t, err, 0, "CollectiveError: rank 0 of 2")
	must(t, made.Begin(ctx, stage)) // with ranks that are started anew
	k.step(t, made, 1)
	must(t, made.Close())
}
