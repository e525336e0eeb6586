package main

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

func TestRingLearnsAndReports(t *testing.T) {
	l := lab(t)
	run := l.unbroken(t)
	lines, err := readMetrics(run)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	shaped := 0.0
	for _, line := range lines {
		kinds[line.text("kind")+" "+line.text("stage")]++
		if moved, ok := line.number("uadt/mass_moved"); ok {
			shaped += moved
		}
	}
	for kind, want := range map[string]int{"step align": 3, "step sft": 50, "step rl": 3, "eval base": 1, "eval rl": 2} {
		if kinds[kind] != want {
			t.Errorf("%d lines %q in metrics.jsonl, want %d (all: %v)", kinds[kind], kind, want, kinds)
		}
	}
	if shaped == 0 {
		t.Error("no advantage was shaped: the run exercises nothing of uadt")
	}
	for _, pattern := range []string{"ledger/step-*.parquet", "rollouts/step-*.safetensors", "tb/*tfevents*"} {
		if found, err := filepath.Glob(filepath.Join(run, pattern)); err != nil || len(found) == 0 {
			t.Errorf("the run has no %s (%v)", pattern, err)
		}
	}
	start, err := modelDigest(l.path("model"))
	if err != nil {
		t.Fatal(err)
	}
	afterSFT, err := modelDigest(filepath.Join(run, "checkpoints", "step-000053", "policy"))
	if err != nil {
		t.Fatal(err)
	}
	if end := finalDigest(t, run); end == start || end == afterSFT {
		t.Errorf("weights are %s at the end, %s after SFT, %s at the start: a stage changed nothing", end, afterSFT, start)
	}
}

func TestTheSameBitsTwiceAndFreshBeside(t *testing.T) {
	if testing.Short() {
		t.Skip("a whole run; the kills of -short compare the same bits")
	}
	l := lab(t)
	first := l.unbroken(t)
	before := tree(t, first)
	r := invoke(t, "--config", l.path("recipe.yaml"), "--fresh")
	r.expect(t, exitDone)
	beside := runDirectory(t, r.stdout)
	if filepath.Clean(beside) == filepath.Clean(first) {
		t.Fatalf("--fresh wrote into %s", first)
	}
	requireSame(t, outcome(t, beside), outcome(t, first))
	requireUntouched(t, first, before)
}

// runDirectory reads where a transcript says that the run is.
func runDirectory(t *testing.T, transcript string) string {
	t.Helper()
	_, rest, ok := strings.Cut(transcript, "run directory: ")
	if !ok {
		t.Fatalf("the transcript names no run directory:\n%s", transcript)
	}
	dir, _, _ := strings.Cut(rest, "\n")
	return dir
}

func TestCompleteRunSaysSo(t *testing.T) {
	l := lab(t)
	run := l.unbroken(t)
	before := tree(t, run)
	r := invoke(t, "--config", l.path("recipe.yaml"))
	r.expect(t, exitDone, "run is complete", "--fresh")
	for _, words := range []string{"held-out accuracy", "after RL (3 steps)", "tau, nats", run, "reconstruction", "not for clinical use"} {
		if !strings.Contains(r.stdout, words) {
			t.Errorf("the transcript does not say %q:\n%s", words, r.stdout)
		}
	}
	requireUntouched(t, run, before)
}

// TestKilledRunsEndAsUnbrokenOnes kills one run again and again, each time at
// the line that an event writes, until it gets through.
func TestKilledRunsEndAsUnbrokenOnes(t *testing.T) {
	l := lab(t)
	want := outcome(t, l.unbroken(t))
	recipe, runs := writeRecipe(t, l.recipe)
	events := [][]string{
		{"step=10", "stage=sft"}, {"checkpoint saved", "step=40"}, {"evaluated", "step=53"},
		{"stage started", "stage=rl"}, {"msg=step", "stage=rl", "step=2"}, {"checkpoint saved", "step=56"},
	}
	if testing.Short() {
		events = events[1:2]
	}
	for _, event := range events {
		var once atomic.Bool
		r := start(t, nil, func(p *process, line string) {
			if contains(line, event...) && once.CompareAndSwap(false, true) {
				p.kill()
			}
		}, "--config", recipe).wait(t)
		if !once.Load() {
			t.Fatalf("no line with %q came; exit code %d:\n%s", event, r.code, r.stderr)
		}
	}
	r := invoke(t, "--config", recipe)
	r.expect(t, exitDone)
	requireSame(t, outcome(t, filepath.Join(runs, "tiny")), want)
}

func TestFirstInterruptStopsResumably(t *testing.T) {
	l := lab(t)
	want := outcome(t, l.unbroken(t))
	recipe, runs := writeRecipe(t, l.recipe)
	code, stderr := interruptAt(t, recipe, 1, "msg=step", "stage=rl", "step=1")
	result{code: code, stderr: stderr}.expect(t, exitStopped, "can be resumed", "checkpoint saved")
	invoke(t, "--config", recipe, "--resume").expect(t, exitDone, "resumed=true")
	requireSame(t, outcome(t, filepath.Join(runs, "tiny")), want)
}

func TestSecondInterruptStopsAtOnce(t *testing.T) {
	l := lab(t)
	want := outcome(t, l.unbroken(t))
	recipe, runs := writeRecipe(t, l.recipe)
	code, stderr := interruptAt(t, recipe, 2, "msg=step", "stage=sft", "step=30")
	result{code: code, stderr: stderr}.expect(t, exitInterrupted, "interrupted twice", "can be resumed")
	if testing.Short() {
		return
	}
	invoke(t, "--config", recipe).expect(t, exitDone)
	requireSame(t, outcome(t, filepath.Join(runs, "tiny")), want)
}

// interruptAt runs a recipe and sends n interrupts at the first line with words.
func interruptAt(t *testing.T, recipe string, n int, words ...string) (code int, stderr string) {
	t.Helper()
	signals := make(chan os.Signal, n)
	sent := false
	w := &watcher{}
	w.seen = func(line string) {
		if !sent && contains(line, words...) {
			sent = true
			for range n {
				signals <- syscall.SIGINT
			}
		}
	}
	r := invokeWith(t, &Main{Stderr: w, Signals: signals}, "--config", recipe)
	if !sent {
		t.Fatalf("no line with %q came:\n%s", words, w.text())
	}
	return r.code, w.text()
}

func TestAnotherIdentityIsRefusedAndNothingTouched(t *testing.T) {
	l := lab(t)
	run := l.unbroken(t)
	before := tree(t, l.path("runs"))
	for _, c := range []struct {
		name string
		set  []string
		keys []string
	}{
		{"one key", []string{"uadt.lambda=0.75"}, []string{"uadt.lambda"}},
		{"several keys", []string{"grpo.clip_low=0.1", "rollout.group_size=8"}, []string{"grpo.clip_low", "rollout.group_size"}},
		{"other adapters", []string{"trainer.lora_alpha=3", "trainer.lora_targets=q_proj"}, []string{"trainer.lora_alpha", "trainer.lora_targets", "q_proj"}},
		{"adapters for weights", []string{"trainer.backend=pytorch", "trainer.lora_rank=8"}, []string{"trainer.backend", "trainer.lora_rank"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := []string{"--config", l.path("recipe.yaml")}
			for _, s := range c.set {
				args = append(args, "--set", s)
			}
			invoke(t, args...).expect(t, exitUsage, append(c.keys, run)...)
			invoke(t, append(args, "--resume")...).expect(t, exitUsage, append(c.keys, run)...)
			requireUntouched(t, l.path("runs"), before)
		})
	}
}

func TestDryRunTouchesNothing(t *testing.T) {
	l := lab(t)
	recipe, runs := writeRecipe(t, l.recipe)
	before := tree(t, filepath.Dir(recipe))
	data := tree(t, l.path("data"))
	r := invoke(t, "--config", recipe, "--dry-run", "--set", "uadt.rule=c2", "--seed", "9")
	r.expect(t, exitDone)
	for _, words := range []string{
		"rule: c2 # --set", "seed: 9 # --set", "group_size: 4 # " + recipe + ":", "4 questions x 4 traces",
		"nats-server in the process", "native engine in the process", runs,
	} {
		if !strings.Contains(r.stdout, words) {
			t.Errorf("the dry run does not say %q:\n%s", words, r.stdout)
		}
	}
	requireUntouched(t, filepath.Dir(recipe), before)
	requireUntouched(t, l.path("data"), data)
}

func TestResumeWithoutARun(t *testing.T) {
	l := lab(t)
	recipe, runs := writeRecipe(t, l.recipe)
	invoke(t, "--config", recipe, "--resume").expect(t, exitUsage, "there is no run at", runs)
}

func TestOneStageOfARecipe(t *testing.T) {
	l := lab(t)
	recipe, runs := writeRecipe(t, l.recipe)
	invoke(t, "--config", recipe, "--stage", "align").expect(t, exitDone)
	lines, err := readMetrics(filepath.Join(runs, "tiny"))
	if err != nil {
		t.Fatal(err)
	}
	if len(lines) != 3 || lines[2].text("stage") != "align" {
		t.Errorf("%d lines of metrics, want the 3 of align: %v", len(lines), lines)
	}
	invoke(t, "--config", recipe, "--stage", "none").expect(t, exitUsage, "--stage none")
}
