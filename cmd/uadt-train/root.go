package main

import (
	"context"
	"io"
	"log/slog"
	"sync"

	"github.com/spf13/cobra"

	"github.com/uadt-train/uadt-train/configs"
)

// rootCommand builds the command tree. Training is the root itself.
func (m *Main) rootCommand(w *watch) *cobra.Command {
	var t trainFlags
	root := &cobra.Command{
		Use:   "uadt-train --config FILE",
		Short: "train ophthalmic vision-language models by GRPO + UADT",
		Long: `uadt-train trains ophthalmic vision-language models by GRPO + UADT
(uncertainty-aware dynamic thinking), on a laptop or on a cluster.

With --config it runs a recipe. A run directory that exists and is incomplete
is resumed if its configuration agrees; --fresh starts anew beside it.
The first Ctrl-C finishes the step, saves a checkpoint and stops; the second
stops at once. Both leave a run that can be resumed.

UADT's exact formula is unpublished: the one here is a reconstruction.
Nothing here is for clinical use.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 stopped and resumable,
4 a fleet, bus or trainer could not be reached, 130 interrupted twice.`,
		SilenceErrors: true, SilenceUsage: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q; uadt-train --help lists them", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case t.config.file == "" && cmd.Flags().NFlag() == 0:
				return cmd.Help()
			case t.config.file == "":
				return usagef("--config names no recipe")
			case cmd.Flags().Changed("seed") && t.seed < 0:
				return usagef("--seed %d is negative", t.seed)
			}
			return m.train(cmd.Context(), w.admit, t)
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	t.bind(root)
	root.AddCommand(m.commands(w)...)
	for _, cmd := range root.Commands() {
		if cmd.HasSubCommands() {
			refuseUnknown(cmd)
		}
	}
	return root
}

// refuseUnknown makes group, which only holds commands, print its help when it
// stands alone and refuse anything that it does not hold: cobra would print the
// help and call that a success.
func refuseUnknown(group *cobra.Command) {
	group.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("unknown command %q; %s --help lists them", args[0], group.CommandPath())
		}
		return nil
	}
	group.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// configFlags are the flags of every command that reads a recipe.
type configFlags struct {
	file     string
	set      []string
	rehearse bool // see loadRehearsal
}

func (c *configFlags) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.file, "config", "", "YAML recipe")
	cmd.Flags().StringArrayVar(&c.set, "set", nil, "key=value, over the recipe; may be given again")
}

// bindRehearse adds --rehearse, for the commands that run a recipe or look at a
// run to be.
func (c *configFlags) bindRehearse(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&c.rehearse, "rehearse", false,
		"make the recipe small: every stage for 2 steps, on phantoms where its data is not there; run NAME"+rehearsalSuffix)
}

func (c *configFlags) load(m *Main) (configs.Loaded, error) {
	if c.rehearse {
		return c.loadRehearsal(m)
	}
	return configs.Load(configs.Request{File: c.file, Set: c.set, Env: m.Env})
}

// relay is where a logger writes: stderr, or above the bars while they are drawn.
type relay struct {
	mu sync.Mutex
	w  io.Writer
}

// Write implements io.Writer.
func (r *relay) Write(text []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.w.Write(text)
}

// to sends what is written from here on to w.
func (r *relay) to(w io.Writer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.w = w
}

// logger returns the structured logger on stderr that a recipe asks for.
func (m *Main) logger(level, format string) *slog.Logger { return newLogger(m.Stderr, level, format) }

func newLogger(out io.Writer, level, format string) *slog.Logger {
	options := &slog.HandlerOptions{Level: slog.LevelInfo}
	switch level {
	case "debug":
		options.Level = slog.LevelDebug
	case "warn":
		options.Level = slog.LevelWarn
	case "error":
		options.Level = slog.LevelError
	}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(out, options))
	}
	return slog.New(slog.NewTextHandler(out, options))
}

// quiet returns log without the routine of parts that run inside this process,
// which change state at every step; warnings stay, and debug shows all.
func quiet(log *slog.Logger) *slog.Logger {
	if log.Enabled(context.Background(), slog.LevelDebug) {
		return log
	}
	return slog.New(warningsOnly{log.Handler()})
}

// warningsOnly is a handler that drops everything below a warning.
type warningsOnly struct{ slog.Handler }

// Enabled implements slog.Handler.
func (w warningsOnly) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && w.Handler.Enabled(ctx, level)
}
