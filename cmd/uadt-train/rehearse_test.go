package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/configs"
)

// recipes are those of the paper's two models.
var recipes = []string{"qwen3b.yaml", "intern2b.yaml"}

func rehearsal(t *testing.T, file string, set ...string) configs.Config {
	t.Helper()
	c := configFlags{file: file, set: set, rehearse: true}
	loaded, err := c.load(&Main{})
	if err != nil {
		t.Fatal(err)
	}
	return loaded.Config
}

// A rehearsal is the recipe, made small, and nothing else of it changes.
func TestRehearsalChangesOnlyTheSize(t *testing.T) {
	small := map[string]bool{
		"name": true, "rollout.questions_per_step": true, "rollout.max_tokens": true,
		"eval.questions": true, "eval.data": true, "checkpoint.every": true,
	}
	for _, name := range recipes {
		file := filepath.Join("..", "..", "configs", name)
		whole, err := configs.Load(configs.Request{File: file})
		if err != nil {
			t.Fatal(err)
		}
		c := rehearsal(t, file)
		if want := whole.Name + "-rehearsal"; c.Name != want {
			t.Errorf("%s: the rehearsal is run %q, want %q", name, c.Name, want)
		}
		for _, d := range configs.Diff(whole.Config, c) {
			if field := d.Key[strings.LastIndexByte(d.Key, '.')+1:]; !small[d.Key] && !strings.HasPrefix(d.Key, "stages") {
				t.Errorf("%s: %s changes from %s to %s", name, d.Key, d.A, d.B)
			} else if strings.HasPrefix(d.Key, "stages") && field != "steps" && field != "warmup" && field != "batch" && field != "data" {
				t.Errorf("%s: %s changes from %s to %s", name, d.Key, d.A, d.B)
			}
		}
		for i, s := range c.Stages {
			if s.Steps != 2 || !isPhantom(s.Data) {
				t.Errorf("%s: stage %s has %d steps on %s, want 2 on phantoms", name, s.Name, s.Steps, s.Data)
			}
			if _, _, err := parsePhantom(s.Data); err != nil {
				t.Errorf("%s: stage %s: %v", name, whole.Stages[i].Name, err)
			}
		}
	}
}

func TestRehearsalKeepsDataAndWhatIsSet(t *testing.T) {
	l := lab(t)
	recipe, _ := writeRecipe(t, l.recipe)
	c := rehearsal(t, recipe, "stages.sft.steps=7", "name=mine", "rollout.max_tokens=5")
	if c.Name != "mine" || c.Stages[1].Steps != 7 || c.Rollout.MaxTokens != 5 {
		t.Errorf("--set is overruled: name %s, %d steps, %d tokens", c.Name, c.Stages[1].Steps, c.Rollout.MaxTokens)
	}
	for _, s := range c.Stages {
		if isPhantom(s.Data) {
			t.Errorf("stage %s: its file is there, and %s takes its place", s.Name, s.Data)
		}
	}
	if isPhantom(c.Eval.Data) {
		t.Errorf("held-out file is there, and %s takes its place", c.Eval.Data)
	}
	if c = rehearsal(t, recipe); c.Rollout.MaxTokens != 32 {
		t.Errorf("responses grow from 32 to %d tokens", c.Rollout.MaxTokens)
	}
}

// The paper's recipes run with --rehearse and a model alone, but for the servers.
func TestDryRunOfARehearsal(t *testing.T) {
	l := lab(t)
	for _, name := range recipes {
		file := filepath.Join("..", "..", "configs", name)
		r := invoke(t, "--config", file, "--set", "model.path="+l.path("model"), "--rehearse", "--dry-run")
		r.expect(t, exitDone)
		if !contains(r.stdout, "-rehearsal", "phantom:captions:", "phantom:sft:", "phantom:train:", "phantom:in_domain:") {
			t.Errorf("%s: the plan does not show what is changed:\n%s", name, r.stdout)
		}
		invoke(t, "--config", file, "--set", "model.path="+l.path("model"), "--dry-run").expect(t, exitUsage, "missing", "data/align/train.json")
	}
}

func TestWarmupLongerThanAStageIsRefused(t *testing.T) {
	l := lab(t)
	recipe, runs := writeRecipe(t, l.recipe)
	invoke(t, "--config", recipe, "--set", "stages.sft.warmup=51").expect(t, exitUsage, "stages.1.warmup", "51", "50 updates")
	requireAbsent(t, runs)
}

// Nothing of a rehearsal can be taken for the recipe's run, whatever it is called
// and wherever one looks.
func TestRehearsalIsNoRun(t *testing.T) {
	l := lab(t)
	recipe, runs := writeRecipe(t, l.rlOnly)
	// The same identity as the recipe's: only the number of steps differs.
	args := []string{"--config", recipe, "--set", "rollout.questions_per_step=4", "--set", "eval.questions=4", "--set", "stages.rl.data=phantom:train:16", "--run", "chosen"}
	small := append(slices.Clone(args), "--rehearse")
	note := []string{"REHEARSAL, not a run of chosen", "phantoms", "stand in for the data of stage rl"}
	if r := invoke(t, append(small, "--dry-run")...); !contains(r.stdout, note...) {
		t.Errorf("the plan does not say what it is:\n%s", r.stdout)
	}
	r := invoke(t, small...)
	if r.expect(t, exitDone, note...); !contains(r.stdout, note...) {
		t.Errorf("the transcript does not say what it is:\n%s", r.stdout)
	}
	if r = invoke(t, small...); !contains(r.stdout, note...) {
		t.Errorf("asked again, the transcript does not say what it is:\n%s", r.stdout)
	}
	if text := string(readFile(t, filepath.Join(runs, "chosen", rehearsalFile))); !contains(text, note...) {
		t.Errorf("the run directory says %q", text)
	}
	invoke(t, args...).expect(t, exitUsage, filepath.Join(runs, "chosen")+" is of a rehearsal", "--fresh")
	args[len(args)-1], small[len(args)-1] = "real", "real"
	if r := invoke(t, args...); contains(r.stdout+r.stderr, "REHEARSAL") {
		t.Errorf("a run is called a rehearsal:\n%s%s", r.stdout, r.stderr)
	}
	requireAbsent(t, filepath.Join(runs, "real", rehearsalFile))
	invoke(t, small...).expect(t, exitUsage, filepath.Join(runs, "real")+" is of a run", "--fresh")
}
