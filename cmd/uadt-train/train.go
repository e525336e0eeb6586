package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/experiments"
	"github.com/uadt-train/uadt-train/internal/blob"
	"github.com/uadt-train/uadt-train/internal/coordinator"
)

// trainFlags are those of the root command.
type trainFlags struct {
	config  configFlags
	run     string
	runsDir string
	stage   string
	resume  bool
	fresh   bool
	seed    int64
	dryRun  bool
}

func (t *trainFlags) bind(cmd *cobra.Command) {
	t.config.bind(cmd)
	t.config.bindRehearse(cmd)
	f := cmd.Flags()
	f.StringVar(&t.run, "run", "", "name of the run (default name)")
	f.StringVar(&t.runsDir, "runs-dir", "", "folder of run directories (default runs_dir)")
	f.StringVar(&t.stage, "stage", "", "run this stage of the recipe only, from model.path")
	f.BoolVar(&t.resume, "resume", false, "resume, and fail if there is nothing to resume")
	f.BoolVar(&t.fresh, "fresh", false, "start anew beside an existing run directory")
	f.Int64Var(&t.seed, "seed", -1, "seed of the run (default seed)")
	f.BoolVar(&t.dryRun, "dry-run", false, "print the resolved recipe and the plan, and touch nothing")
	cmd.MarkFlagsMutuallyExclusive("resume", "fresh")
}

// resolve loads the recipe and puts the flags over it.
func (t trainFlags) resolve(m *Main) (configs.Loaded, error) {
	flags := t.config
	for key, value := range map[string]string{"name": t.run, "runs_dir": t.runsDir} {
		if value != "" {
			flags.set = append(flags.set, key+"="+value)
		}
	}
	if t.seed >= 0 {
		flags.set = append(flags.set, fmt.Sprintf("seed=%d", t.seed))
	}
	loaded, err := flags.load(m)
	if err != nil || t.stage == "" {
		return loaded, err
	}
	for _, s := range loaded.Stages {
		if s.Name == t.stage {
			loaded.Stages = []configs.Stage{s}
			return loaded, nil
		}
	}
	return loaded, usagef("--stage %s: the recipe has no such stage", t.stage)
}

// program names what wrote a run directory.
const program = "uadt-train 0.1"

// train runs a recipe to its end, or resumes it.
func (m *Main) train(ctx, admit context.Context, t trainFlags) (err error) {
	loaded, err := t.resolve(m)
	if err != nil {
		return err
	}
	if t.dryRun {
		return m.dryRun(loaded, t.config.rehearse)
	}
	if err := refuseMissing(loaded.Config); err != nil {
		return err
	}
	if !t.fresh {
		if err := keepApart(filepath.Join(loaded.RunsDir, loaded.Name), t.config.rehearse); err != nil {
			return err
		}
	}
	model, err := readFamily(loaded.Model.Path)
	if err != nil {
		return err
	}
	if err := model.check(loaded.Config); err != nil {
		return err
	}
	screen := &relay{w: m.Stderr}
	log := newLogger(screen, loaded.Log.Level, loaded.Log.Format)
	digest, err := modelDigest(loaded.Model.Path)
	if err != nil {
		return err
	}
	run, err := m.openRun(loaded, t, digest, log)
	if errors.Is(err, experiments.ErrComplete) {
		fmt.Fprintf(m.Stderr, "uadt-train: %v; --fresh starts another one\n", err)
		return m.transcript(filepath.Join(loaded.RunsDir, loaded.Name))
	}
	if err != nil {
		return err
	}
	var undo closers
	undo.add(run.Close)
	defer func() { err = errors.Join(err, undo.close()) }()
	if t.config.rehearse {
		if err := m.markRehearsal(run.Dir(), loaded.Config); err != nil {
			return err
		}
	}
	loaded.Name = filepath.Base(run.Dir())
	r := &running{m: m, config: loaded.Config, run: run, log: log, screen: screen, started: m.Now(), modelDigest: digest, undo: &undo}
	result, err := r.execute(ctx, admit)
	if err != nil {
		return err
	}
	if err := run.Finish(); err != nil {
		return err
	}
	log.Debug("finished", "step", result.Step, "digest", result.Digest)
	return m.transcript(run.Dir())
}

// openRun opens or creates the run directory.
func (m *Main) openRun(loaded configs.Loaded, t trainFlags, digest string, log *slog.Logger) (*experiments.Run, error) {
	text, err := loaded.Config.YAML()
	if err != nil {
		return nil, err
	}
	settings := []experiments.Setting{{Key: "digest of model.path", Class: experiments.ClassIdentity, Value: digest}}
	for _, v := range loaded.Values() {
		settings = append(settings, experiments.Setting{Key: v.Key, Class: experiments.Class(v.Class), Value: v.Text})
	}
	run, err := experiments.Open(experiments.Spec{
		Dir: filepath.Join(loaded.RunsDir, loaded.Name), Config: text, Settings: settings, Program: program,
		Fresh: t.fresh, Keep: loaded.Checkpoint.Keep, Logger: log, Now: m.Now,
	})
	var mismatch *experiments.MismatchError
	switch {
	case errors.As(err, &mismatch):
		return nil, &usageError{err}
	case err != nil:
		return nil, err
	case t.resume && !run.Resumed():
		return nil, errors.Join(usagef("--resume: there is no run at %s", run.Dir()), run.Close())
	}
	return run, nil
}

// running is one run while it is being executed.
type running struct {
	m           *Main
	config      configs.Config
	run         *experiments.Run
	log         *slog.Logger
	screen      *relay // where log writes
	started     time.Time
	modelDigest string
	images      images // of the run, by digest
	undo        *closers
}

// execute wires the ring and runs it.
func (r *running) execute(ctx, admit context.Context) (coordinator.Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	point, err := r.run.Resume()
	if err != nil {
		return coordinator.Result{}, err
	}
	last, err := r.run.LastIncarnation()
	if err != nil {
		return coordinator.Result{}, err
	}
	opened, err := openBus(ctx, r.config, r.run.Dir(), last, r.undo)
	if err != nil {
		return coordinator.Result{}, err
	}
	if err := r.run.RecordIncarnation(opened.incarnation); err != nil {
		return coordinator.Result{}, err
	}
	store, err := blob.Open(filepath.Join(r.run.Dir(), "blobs"))
	if err != nil {
		return coordinator.Result{}, err
	}
	address, err := serveBlobs(ctx, store, opened, r.config.Name, r.undo)
	if err != nil {
		return coordinator.Result{}, err
	}
	pictures, err := openImages(address, r.undo)
	if err != nil {
		return coordinator.Result{}, err
	}
	r.images = pictures
	options, failed, err := r.assemble(ctx, assembly{bus: opened, store: store, images: pictures, resumed: point != nil})
	if err != nil {
		return coordinator.Result{}, err
	}
	if point != nil {
		options.Resume = &coordinator.Point{Dir: point.Dir, State: point.State}
	}
	ring, err := coordinator.New(options)
	if err != nil {
		return coordinator.Result{}, err
	}
	stop := guard(ctx, cancel, opened.lost, failed)
	defer stop()
	result, err := ring.Run(ctx, admit)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(cause, context.Canceled) {
		return result, cause
	}
	return result, err
}

// errLeaseLost ends a coordinator that can no longer be sure of being the only
// one of its run.
var errLeaseLost = errors.New("the lease of the run was lost: another coordinator took over, or the bus did not answer in time; the run can be resumed")

// guard ends the run when its lease or a worker of its own is lost.
func guard(ctx context.Context, cancel context.CancelCauseFunc, lost <-chan struct{}, failed <-chan error) (stop func()) {
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-lost:
			cancel(errLeaseLost)
		case err := <-failed:
			cancel(workerFailed(err))
		case <-ctx.Done():
		case <-done:
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}
