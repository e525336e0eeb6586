package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/internal/bus"
)

// finding is one line of the doctor: what was found, and what a run wants when
// that is something else.
type finding struct {
	Check string `json:"check"`
	OK    bool   `json:"ok"`
	Found string `json:"found"`
	Want  string `json:"want,omitempty"`
	// unreachable tells a dependency that does not answer from bad input.
	unreachable bool
}

// check makes a finding of what went right or wrong.
func check(name, found string, err error) finding {
	if err != nil {
		return finding{Check: name, Found: err.Error()}
	}
	return finding{Check: name, OK: true, Found: found}
}

// How long the doctor waits for each of its checks.
const (
	serverPatience  = 10 * time.Second // one question to a server
	busPatience     = 5 * time.Second
	trainerPatience = 2 * time.Minute // an interpreter imports PyTorch, on a disk that may be slow
	filesPatience   = 2 * time.Minute // a file of records is read, or a folder on another machine looked at
)

// doctorCommand checks everything that a run will need, before it runs.
func (m *Main) doctorCommand() *cobra.Command {
	var c configFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use: "doctor --config FILE", Short: "check model, data, fleet, bus, trainer, memory and disk before a run", Args: cobra.NoArgs,
		Long: `doctor looks at everything that a recipe names and says, a line each, what it
found and, where a run could not work with that, what it wants. It samples
nothing, trains nothing and changes nothing. Memory is estimated from the
checkpoint and the recipe; files of records that take minutes to read want data
index first.

Exit codes: 0 all is well, 1 something will not do, 2 the recipe is invalid,
4 nothing is wrong but that a server or bus did not answer.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.file == "" {
				return usagef("doctor: needs --config")
			}
			loaded, err := c.load(m)
			if err != nil {
				return err
			}
			return m.report(newDoctor(loaded.Config).examine(cmd.Context()), asJSON)
		},
	}
	c.bind(cmd)
	c.bindRehearse(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON lines")
	return cmd
}

func (m *Main) report(findings []finding, asJSON bool) error {
	out := &printer{w: m.Stdout}
	encoder := json.NewEncoder(m.Stdout)
	var bad, away []string
	for _, f := range findings {
		if asJSON {
			if err := encoder.Encode(f); err != nil {
				return fmt.Errorf("doctor: %w", err)
			}
		} else {
			out.printf("%s\n", f)
		}
		switch {
		case f.OK:
		case f.unreachable:
			away = append(away, f.Check)
		default:
			bad = append(bad, f.Check)
		}
	}
	switch {
	case out.err != nil:
		return out.err
	case len(bad) > 0:
		return fmt.Errorf("doctor: %s will not do", strings.Join(bad, ", "))
	case len(away) > 0:
		return &unreachableError{strings.Join(away, ", "), errors.New("see above")}
	}
	return nil
}

// String is the line of f.
func (f finding) String() string {
	mark := "ok  "
	if !f.OK {
		mark = "FAIL"
	}
	text := fmt.Sprintf("%s  %-12s %s", mark, f.Check, f.Found)
	if f.Want != "" {
		text += "; want " + f.Want
	}
	return text
}

// doctor is what the checks share: each uses what those before it found.
type doctor struct {
	c     configs.Config
	model modelFacts
	rows  map[string]rowFacts // by stage, and evaluation
	host  *trainerFacts       // nil when the trainer's process could not be asked
}

// evaluation is the key of the held-out records among doctor.rows.
const evaluation = "eval"

func newDoctor(c configs.Config) *doctor {
	return &doctor{c: c, rows: map[string]rowFacts{}}
}

// examine runs all checks, each within its time.
func (d *doctor) examine(ctx context.Context) []finding {
	findings := d.within(ctx, "model", filesPatience, (*doctor).checkModel)
	for _, s := range d.c.Stages {
		findings = append(findings, d.within(ctx, "data "+s.Name, filesPatience, checkRecords(s.Name, s.Data))...)
	}
	if d.c.Eval.Data != "" {
		findings = append(findings, d.within(ctx, "data eval", filesPatience, checkRecords(evaluation, d.c.Eval.Data))...)
	}
	findings = append(findings, d.checkFleet(ctx)...)
	if d.c.Bus.URL != "" {
		findings = append(findings, checkBus(ctx, d.c))
	}
	findings = append(findings, d.within(ctx, "trainer", trainerPatience, (*doctor).checkTrainer)...)
	findings = append(findings, d.within(ctx, "memory", filesPatience, (*doctor).checkMemory)...)
	return append(findings, d.within(ctx, "disk", filesPatience, (*doctor).checkDisk)...)
}

// within runs one check, and fails it when it has not ended in time: a file
// system that hangs cannot be cancelled. The check works on a copy of d, which is
// taken over when it has ended: what it still does later is lost.
func (d *doctor) within(ctx context.Context, name string, patience time.Duration, look func(*doctor, context.Context) []finding) []finding {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	own := *d
	own.rows = maps.Clone(d.rows)
	done := make(chan []finding, 1)
	go func() { done <- look(&own, ctx) }()
	select {
	case found := <-done:
		*d = own
		return found
	case <-ctx.Done():
	}
	select { // it may have ended because of the deadline, and says more
	case found := <-done:
		*d = own
		return found
	case <-time.After(time.Second):
		return []finding{check(name, "", fmt.Errorf("no end of the check within %s", patience))}
	}
}

func checkBus(ctx context.Context, c configs.Config) finding {
	ctx, cancel := context.WithTimeout(ctx, busPatience)
	defer cancel()
	seed, err := readSeed(c.Bus.Credentials)
	if err != nil {
		return check("bus", "", err)
	}
	conn, err := bus.Dial(ctx, bus.DialOptions{URL: c.Bus.URL, Name: "doctor", Seed: seed})
	if err != nil {
		return finding{Check: "bus", Found: err.Error(), Want: "a NATS server with JetStream at bus.url", unreachable: true}
	}
	conn.Close()
	return check("bus", c.Bus.URL, nil)
}
