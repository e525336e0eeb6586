package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Launch starts the ranks on this machine, one process each.
type Launch struct {
	// Python is the interpreter that has the package uadt_trainer's needs.
	// Required.
	Python string
	// Package is the directory that holds uadt_trainer, for an interpreter that
	// has it not installed. Default: it is installed.
	Package string
	// Bus is the address of the bus for the ranks. Required.
	Bus string
	// Work is where policies are published, seen by the servers. Required.
	Work string
	// Logs is where each rank's output goes, rank-<n>.log. Required.
	Logs string
	// Credentials is the file with the trainer role's nkey seed. Default: none.
	Credentials string
	// Device is auto, cpu, cuda or cuda:N. Default auto: a GPU for each rank
	// where there is one.
	Device string
	// DType of the weights: auto, float32 or bfloat16. Default auto: bfloat16 on
	// a GPU.
	DType string
	// Sharding says whether ranks cut weights, gradients and optimizer state
	// between them: full; none, each holds all of it; or auto (default), full on
	// several GPUs.
	Sharding string
	// Threads is the number of CPU threads of each rank. Default: PyTorch's.
	Threads int
	// Collective is how long ranks wait for each other. Default 10 minutes.
	Collective time.Duration
	// Environment is added to ours, as NAME=value.
	Environment []string
	// Grace is how long ranks may take to end when they are told to. Default
	// 1 minute: a checkpoint may have to be written.
	Grace time.Duration
}

func (l Launch) prepare() (Launch, error) {
	var errs []error
	for name, value := range map[string]string{"Python": l.Python, "Bus": l.Bus, "Work": l.Work, "Logs": l.Logs} {
		if value == "" {
			errs = append(errs, fmt.Errorf("option %s of Launch is missing", name))
		}
	}
	if l.Device == "" {
		l.Device = "auto"
	}
	if l.DType == "" {
		l.DType = "auto"
	}
	if l.Sharding == "" {
		l.Sharding = "auto"
	}
	if !slices.Contains([]string{"auto", "none", "full"}, l.Sharding) {
		errs = append(errs, fmt.Errorf("option Sharding of Launch is %q, want auto, none or full", l.Sharding))
	}
	if l.Collective == 0 {
		l.Collective = 10 * time.Minute
	}
	if l.Grace == 0 {
		l.Grace = time.Minute
	}
	if l.Threads < 0 || l.Collective < 0 || l.Grace < 0 {
		errs = append(errs, errors.New("a number of Launch is below 0"))
	}
	return l, errors.Join(errs...)
}

// processes are the ranks of one instance that were started here. A nil value
// stands for none.
type processes struct {
	instance string
	inputs   []io.Closer // closing them ends the ranks
	commands []*exec.Cmd
	waiting  sync.WaitGroup
	gone     chan struct{} // closed when the first has ended

	mu    sync.Mutex
	first int
	why   string
}

// ended says which rank ended first, and how; why is empty when all run.
func (p *processes) ended() (rank int, why string) {
	if p == nil {
		return 0, ""
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.first, p.why
}

// exits is closed when a rank has ended.
func (p *processes) exits() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.gone
}

// launch starts the ranks, unless they run or it is not our task. What is left
// of a set that lost a rank, or that a stage broke with, is ended first.
func (t *Trainer) launch() error {
	if t.options.Launch == nil {
		return nil
	}
	t.mu.Lock()
	local := t.local
	broken := t.stage != nil && t.stage.broken != nil
	t.mu.Unlock()
	if local != nil {
		if _, why := local.ended(); why == "" && !broken {
			return nil
		}
		local.kill()
	}
	made, err := t.options.Launch.start(t.options.Scope.Run, t.options.Ranks)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.local, t.stage = made, nil
	if err != nil {
		return fmt.Errorf("starting %d trainer ranks: %w", t.options.Ranks, err)
	}
	return nil
}

// start starts a set of ranks.
func (l Launch) start(run string, ranks int) (p *processes, err error) {
	p = &processes{instance: randomName(), gone: make(chan struct{})}
	defer func() {
		if err != nil {
			p.kill()
			p = nil
		}
	}()
	if err := errors.Join(os.MkdirAll(l.Work, 0o755), os.MkdirAll(l.Logs, 0o755)); err != nil {
		return p, err
	}
	work, err := filepath.Abs(l.Work)
	if err != nil {
		return p, err
	}
	for rank := range ranks {
		if err := p.startRank(l, run, work, place{rank, ranks}); err != nil {
			return p, fmt.Errorf("rank %d: %w", rank, err)
		}
	}
	return p, nil
}

// place is a rank among all.
type place struct{ rank, of int }

// startRank starts one process; a goroutine that kill waits for reaps it.
func (p *processes) startRank(l Launch, run, work string, at place) (err error) {
	args := []string{"-m", "uadt_trainer", "--bus", l.Bus, "--run", run, "--work", work, "--device", l.Device, "--dtype", l.DType, "--sharding", l.Sharding,
		"--instance", p.instance, "--timeout", strconv.FormatFloat(l.Collective.Seconds(), 'f', -1, 64), "--watch-stdin"}
	if l.Credentials != "" {
		args = append(args, "--credentials", l.Credentials)
	}
	if l.Threads > 0 {
		args = append(args, "--threads", strconv.Itoa(l.Threads))
	}
	if at.of > 1 {
		args = append(args, "--rendezvous", "file://"+filepath.Join(work, "rendezvous-"+p.instance))
	}
	cmd := exec.Command(l.Python, args...)
	cmd.Env = append(os.Environ(), "RANK="+strconv.Itoa(at.rank), "WORLD_SIZE="+strconv.Itoa(at.of), "LOCAL_RANK="+strconv.Itoa(at.rank), "PYTHONUNBUFFERED=1")
	cmd.Env = append(cmd.Env, l.Environment...)
	if l.Package != "" {
		cmd.Env = append(cmd.Env, "PYTHONPATH="+l.Package)
	}
	output, err := os.OpenFile(filepath.Join(l.Logs, fmt.Sprintf("rank-%d.log", at.rank)), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = output, output
	input, err := cmd.StdinPipe()
	if err != nil {
		return errors.Join(err, output.Close())
	}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, output.Close())
	}
	p.inputs, p.commands = append(p.inputs, input), append(p.commands, cmd)
	p.waiting.Go(func() {
		err := errors.Join(cmd.Wait(), output.Close())
		how := "its process ended"
		if err != nil {
			how = fmt.Sprintf("its process ended: %v; see %s", err, output.Name())
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.why == "" {
			p.first, p.why = at.rank, how
			close(p.gone)
		}
	})
	return nil
}

// kill ends all ranks at once and waits for them.
func (p *processes) kill() {
	for _, cmd := range p.commands {
		_ = cmd.Process.Kill() // fails only where the process has ended
	}
	p.release()
	p.waiting.Wait()
}

func (p *processes) release() {
	for _, input := range p.inputs {
		_ = input.Close() // Wait may have closed it already
	}
}

// stop has the ranks end in order; those that do not within the grace are
// killed.
func (t *Trainer) stop(local *processes) error {
	ctx, cancel := context.WithTimeout(t.ctx, t.options.Launch.Grace)
	defer cancel()
	over := make(chan struct{})
	go func() {
		local.waiting.Wait()
		close(over)
	}()
	_, why := local.ended()
	var err error
	if why == "" {
		if _, err = t.call(ctx, "stop", local.instance, same(struct{}{})); err == nil {
			select {
			case <-over:
			case <-ctx.Done():
				err = &TimeoutError{What: "the trainer ranks to end", Waited: t.options.Launch.Grace, Look: t.look(), Err: ctx.Err()}
			}
		}
	}
	local.kill()
	<-over
	var lost *LostError
	if errors.As(err, &lost) {
		return nil // it is gone, as was asked for
	}
	return err
}
