package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/trainer"
)

// dryRun prints the resolved recipe, the plan, and what a run would connect to.
// It opens nothing but the headers of the model directory.
func (m *Main) dryRun(loaded configs.Loaded, rehearse bool) error {
	text, err := loaded.YAML()
	if err != nil {
		return err
	}
	out := &printer{w: m.Stdout}
	out.printf("%s\n", text)
	if rehearse {
		for line := range strings.Lines(rehearsalNote(loaded.Config)) {
			out.printf("# %s", line)
		}
	}
	out.printf("# plan\n")
	for _, s := range loaded.Stages {
		out.printf("#   %-10s %-5s %5d steps, %s\n", s.Name, s.Kind, s.Steps, stagePlan(loaded.Config, s))
	}
	checkpoints := 0
	for _, s := range loaded.Stages {
		checkpoints += (s.Steps + loaded.Checkpoint.Every - 1) / loaded.Checkpoint.Every
	}
	kept := min(checkpoints, loaded.Checkpoint.Keep+len(loaded.Stages))
	if facts, err := readModelFacts(loaded.Model.Path); err == nil { // a missing one is reported below
		out.printf("#   checkpoints: %d written, %d kept, at most about %s on disk\n", checkpoints, kept, bytesText(int64(kept)*checkpointBytes(facts)))
	}
	out.printf("# would connect to\n")
	out.printf("#   bus      %s\n", orElse(loaded.Bus.URL, "nats-server in the process"))
	if len(loaded.Rollout.Servers) == 0 {
		out.printf("#   fleet    native engine in the process, on loopback\n")
	}
	for _, s := range loaded.Rollout.Servers {
		out.printf("#   fleet    %s\n", s)
	}
	out.printf("#   trainer  %s, %d rank(s)\n", loaded.Trainer.Backend, loaded.Trainer.Ranks)
	out.printf("#   run      %s (%s)\n", filepath.Join(loaded.RunsDir, loaded.Name), runState(filepath.Join(loaded.RunsDir, loaded.Name)))
	missing := missingFiles(loaded.Config)
	for _, path := range missing {
		out.printf("#   missing  %s\n", path)
	}
	if out.err != nil {
		return out.err
	}
	return refuseMissing(loaded.Config)
}

// refuseMissing is an error when files that a recipe names are not there, or a
// set of phantoms cannot be meant.
func refuseMissing(c configs.Config) error {
	for _, path := range dataPaths(c) {
		if isPhantom(path) {
			if _, _, err := parsePhantom(path); err != nil {
				return err
			}
		}
	}
	missing := missingFiles(c)
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d files that the recipe names are missing, the first is %s", configs.ErrInvalid, len(missing), missing[0])
}

func stagePlan(c configs.Config, s configs.Stage) string {
	if s.Kind != trainer.RL {
		return fmt.Sprintf("%d records an update, %d in all", s.Batch, s.Batch*s.Steps)
	}
	traces := c.Rollout.QuestionsPerStep * c.Rollout.GroupSize
	return fmt.Sprintf("%d questions x %d traces a step, %d traces and at most %d tokens in all",
		c.Rollout.QuestionsPerStep, c.Rollout.GroupSize, traces*s.Steps, traces*s.Steps*c.Rollout.MaxTokens)
}

// missingFiles lists the files and folders that a recipe names and that are not
// there.
func missingFiles(c configs.Config) []string {
	var missing []string
	for _, path := range append([]string{c.Model.Path}, dataPaths(c)...) {
		if absent(path) {
			missing = append(missing, path)
		}
	}
	return missing
}

// dataPaths lists what the data keys of a recipe name.
func dataPaths(c configs.Config) []string {
	var paths []string
	for _, s := range c.Stages {
		paths = append(paths, s.Data)
	}
	if c.Eval.Data != "" {
		paths = append(paths, c.Eval.Data)
	}
	return paths
}

func runState(dir string) string {
	if _, err := os.Stat(filepath.Join(dir, "run.json")); err != nil {
		return "new"
	}
	return "exists: would be resumed if its identity agrees"
}

func bytesText(n int64) string {
	value, unit := float64(n), "B"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, next
	}
	return fmt.Sprintf("%.3g %s", value, unit)
}

func orElse(text, fallback string) string {
	if text == "" {
		return fallback
	}
	return text
}
