package experiments

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
)

// A run of 12 steps that does nothing but write: rollout batch, ledger, metrics
// of each step, a checkpoint after every third. say is called between writes.
const crashSteps = 12

func writeRun(r *Run, say func()) error {
	ctx := context.Background()
	point, err := r.Resume()
	if err != nil {
		return err
	}
	first := 1
	if point != nil {
		first = point.Step + 1
	}
	for step := first; step <= crashSteps; step++ {
		rows := []map[string]any{{"run": "crash", "step": int64(step), "text": strings.Repeat("x", 1000*step)}}
		tokens := make([]int32, 500)
		groups := []rollout.Group{{Job: rollout.JobID(fmt.Sprint("job-", step)), Traces: []rollout.Trace{{Tokens: tokens}}}}
		for _, write := range []func() error{
			func() error { return r.PutRollout(ctx, step, fmt.Appendf(nil, "meta %d", step), groups) },
			func() error { return r.PutLedger(ctx, step, rows, map[string][]float32{"offsets": {0, 0}}) },
			func() error { return r.PutMetrics(ctx, "step", step, map[string]any{"x": float64(step)}) },
			func() error { return writeCheckpoint(r, step) },
		} {
			if err := write(); err != nil {
				return err
			}
			say()
		}
	}
	return r.Finish()
}

func writeCheckpoint(r *Run, step int) error {
	if step%3 != 0 {
		return nil
	}
	dir, err := r.OpenCheckpoint(context.Background(), step)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "weights"), make([]byte, 100_000), 0o644); err != nil {
		return err
	}
	_, err = r.SealCheckpoint(context.Background(), step, state(step), step == 6)
	return err
}

// withoutStarts is the tree of a run without what names starts.
func withoutStarts(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := tree(t, dir)
	delete(files, "run.json")
	return files
}

// consistent fails unless a run directory that was opened and resumed says one
// thing: nothing half-written, every file readable, nothing after the point.
func consistent(t *testing.T, r *Run, point *Point) {
	t.Helper()
	noLeftovers(t, r.Dir())
	last := 0
	if point != nil {
		last = point.Step
	}
	if got := strings.Count(tree(t, r.Dir())["metrics.jsonl"], "\n"); got != last {
		t.Errorf("%d lines of metrics at step %d", got, last)
	}
	for name := range tree(t, r.Dir()) {
		path := filepath.Join(r.Dir(), name)
		switch {
		case strings.HasPrefix(name, "rollouts/step-"):
			if _, groups, err := ReadRollout(path); err != nil || len(groups) != 1 {
				t.Errorf("%s: %d groups (%v)", name, len(groups), err)
			}
		case strings.HasPrefix(name, "ledger/step-"):
			step, ok := parseStep(filepath.Base(name), ".parquet")
			if rows, err := ReadLedger(path); err != nil || len(rows) != 1 || !ok || step > last {
				t.Errorf("%s at step %d: %d rows (%v)", name, last, len(rows), err)
			}
		}
	}
	for step := 1; step <= last; step++ {
		if _, _, err := r.Rollout(context.Background(), step); err != nil {
			t.Errorf("rollout batch %d at step %d: %v", step, last, err)
		}
	}
}

// Killed at random moments and started again until it is done, a run leaves the
// same files as one that was never killed.
func TestKilledRunEndsAsAnUnbrokenOne(t *testing.T) {
	if dir := os.Getenv("EXPERIMENTS_WRITE_RUN"); dir != "" {
		r := mustOpen(t, spec(dir, nil))
		if err := writeRun(r, func() { _, _ = os.Stdout.WriteString("wrote\n") }); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, dir := t.TempDir(), t.TempDir()
	if err := writeRun(mustOpen(t, spec(want, nil)), func() {}); err != nil {
		t.Fatal(err)
	}
	moments := rand.New(rand.NewPCG(1, 2))
	kills := 0
	for ; ; kills++ {
		if kills > 200 {
			t.Fatal("no end after 200 kills")
		}
		if done := killAfter(t, dir, 1+moments.IntN(20)); done {
			break
		}
		r, err := Open(spec(dir, nil))
		if errors.Is(err, ErrComplete) {
			break // killed after its last write
		}
		if err != nil {
			t.Fatal(err)
		}
		point, err := r.Resume()
		if err != nil {
			t.Fatal(err)
		}
		consistent(t, r, point)
		mustClose(t, r)
	}
	t.Logf("killed %d times", kills)
	if kills < 2 {
		t.Errorf("killed %d times, want at least 2", kills)
	}
	got := withoutStarts(t, dir)
	for name, data := range withoutStarts(t, want) {
		if got[name] != data {
			t.Errorf("%s differs from the unbroken run's", name)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s is not in the unbroken run", name)
	}
}

// killAfter starts the writer and kills it once it has said so many times that
// it wrote. done says that it ended by itself.
func killAfter(t *testing.T, dir string, writes int) (done bool) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestKilledRunEndsAsAnUnbrokenOne$")
	child.Env = append(os.Environ(), "EXPERIMENTS_WRITE_RUN="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for n := 0; n < writes && lines.Scan(); {
		if lines.Text() == "wrote" {
			n++
		}
	}
	if err := child.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	for lines.Scan() { // until the pipe is closed
	}
	err = child.Wait()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != -1) {
		t.Fatalf("the writer failed by itself: %v", err)
	}
	return err == nil
}
