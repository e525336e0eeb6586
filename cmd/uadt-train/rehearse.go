package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/internal/durable"
	"github.com/uadt-train/uadt-train/internal/phantom"
	"github.com/uadt-train/uadt-train/trainer"
)

// rehearsalSuffix ends the name of a rehearsal, which must never share the run
// directory of what it rehearses.
const rehearsalSuffix = "-rehearsal"

// The size of a rehearsal: what every part of the ring needs in order to be
// passed through, and no more.
const (
	rehearsalSteps     = 2
	rehearsalRecords   = 4   // of an update (align, sft)
	rehearsalQuestions = 2   // of a step (rl), and of an evaluation
	rehearsalTokens    = 128 // of a response
	rehearsalPhantoms  = 64  // in place of a file of records that is not there
)

// loadRehearsal loads the recipe made small: every stage for a few steps on a few
// records, responses cut short, a checkpoint after each step, and phantoms where
// a file of records is not there. What --set says wins over it; all else, from
// the prompts to the trainer, is the recipe's.
func (c *configFlags) loadRehearsal(m *Main) (configs.Loaded, error) {
	whole, err := configs.Load(configs.Request{File: c.file, Set: c.set, Env: m.Env})
	if err != nil {
		return whole, err
	}
	small := []string{
		"name=" + whole.Name + rehearsalSuffix,
		fmt.Sprintf("rollout.questions_per_step=%d", rehearsalQuestions),
		fmt.Sprintf("rollout.max_tokens=%d", min(rehearsalTokens, whole.Rollout.MaxTokens)),
		fmt.Sprintf("eval.questions=%d", rehearsalQuestions),
		"checkpoint.every=1",
	}
	for _, s := range whole.Stages {
		key := func(field string, value any) {
			small = append(small, fmt.Sprintf("stages.%s.%s=%v", s.Name, field, value))
		}
		key("steps", rehearsalSteps)
		key("warmup", 0)
		if s.Kind != trainer.RL {
			key("batch", rehearsalRecords)
		}
		if absent(s.Data) {
			key("data", phantomsFor(s.Kind))
		}
	}
	if whole.Eval.Data != "" && absent(whole.Eval.Data) {
		small = append(small, "eval.data="+phantomSet(phantom.SplitInDomain))
	}
	return configs.Load(configs.Request{File: c.file, Set: append(small, c.set...), Env: m.Env})
}

// rehearsalFile marks the run directory of a rehearsal.
const rehearsalFile = "REHEARSAL.txt"

// rehearsalNote says that c is a rehearsal, and what in it phantoms stand in for.
func rehearsalNote(c configs.Config) string {
	var made []string
	for _, s := range c.Stages {
		if isPhantom(s.Data) {
			made = append(made, "stage "+s.Name)
		}
	}
	if isPhantom(c.Eval.Data) {
		made = append(made, "the evaluation")
	}
	note := fmt.Sprintf("REHEARSAL, not a run of %s: it was made small, and its numbers and weights say nothing of the recipe.\n",
		strings.TrimSuffix(c.Name, rehearsalSuffix))
	if len(made) > 0 {
		note += fmt.Sprintf("REHEARSAL: phantoms, which are drawn and of no patient, stand in for the data of %s.\n", list(made))
	}
	return note
}

// markRehearsal says in the run directory and on the screen what it is a run of.
func (m *Main) markRehearsal(dir string, c configs.Config) error {
	note := rehearsalNote(c)
	write := func(w io.Writer) error { _, err := io.WriteString(w, note); return err }
	if err := errors.Join(durable.Write(filepath.Join(dir, rehearsalFile), write), write(m.Stderr)); err != nil {
		return fmt.Errorf("rehearsal: %w", err)
	}
	return nil
}

// keepApart refuses to go on with a rehearsal as a run, or with a run as a
// rehearsal, which --run or --set name may ask for.
func keepApart(dir string, rehearse bool) error {
	note, err := rehearsed(dir)
	if err != nil {
		return err
	}
	_, absent := os.Stat(filepath.Join(dir, "run.json"))
	switch {
	case note != "" && !rehearse:
		return usagef("%s is of a rehearsal: a run needs another name (--run), or --fresh", dir)
	case note == "" && rehearse && absent == nil:
		return usagef("--rehearse: %s is of a run: a rehearsal needs another name (--run), or --fresh", dir)
	}
	return nil
}

// rehearsed returns the note in a run directory; "" where it is no rehearsal's.
func rehearsed(dir string) (string, error) {
	note, err := os.ReadFile(filepath.Join(dir, rehearsalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(note), err
}

// absent says whether a data key names a file that is not there.
func absent(path string) bool {
	if isPhantom(path) {
		return false
	}
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// phantomsFor is the set of phantoms that a stage of this kind can be trained on.
func phantomsFor(kind trainer.StageKind) string {
	split := phantom.SplitTrain
	switch kind {
	case trainer.Align:
		split = phantom.SplitCaptions
	case trainer.SFT:
		split = phantom.SplitSFT
	}
	return phantomSet(split)
}

func phantomSet(split string) string {
	return fmt.Sprintf("%s%s:%d", phantomScheme, split, rehearsalPhantoms)
}
