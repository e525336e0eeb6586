// Command uadt-train trains ophthalmic vision-language models by GRPO + UADT,
// serves and evaluates them, and prepares their data and checkpoints. This
// package parses flags, maps errors to exit codes and signals to contexts, and
// wires adapters to the ring; what is done is done elsewhere. UADT's formula
// is a reconstruction, and nothing here is for clinical use.
package main

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Main is the program with its surroundings handed in, so that tests can build
// and run it.
type Main struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Env            []string // as os.Environ gives it
	// Terminal says whether Stderr is a terminal, where progress bars are drawn.
	Terminal bool
	Now      func() time.Time
	// Signals delivers interrupts: the first asks to stop, the second insists.
	Signals <-chan os.Signal
}

func main() {
	signals, stop := interrupts()
	m := &Main{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Env: os.Environ(),
		Terminal: term.IsTerminal(int(os.Stderr.Fd())), Now: time.Now, Signals: signals,
	}
	code := m.Run(context.Background(), os.Args[1:])
	stop()
	os.Exit(code)
}

// Run executes one command line and returns the exit code.
func (m *Main) Run(ctx context.Context, args []string) int {
	watch := watchSignals(ctx, m.Signals)
	defer watch.stop()
	root := m.rootCommand(watch)
	root.SetArgs(args)
	root.SetIn(m.Stdin)
	root.SetOut(m.Stdout)
	root.SetErr(m.Stderr)
	begun := false
	markBegun(root, &begun)
	err := root.ExecuteContext(watch.work)
	if err != nil && !begun {
		err = &usageError{err} // of flags and arguments: no command has begun
	}
	return m.exit(err, watch)
}

// markBegun makes every command set begun before it does anything.
func markBegun(cmd *cobra.Command, begun *bool) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			*begun = true
			return run(cmd, args)
		}
	}
	for _, child := range cmd.Commands() {
		markBegun(child, begun)
	}
}
