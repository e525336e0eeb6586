package telemetry

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// Progress is a sink that draws two bars on a terminal: the steps of the stage
// with the time left, and the groups of the step that is being sampled.
type Progress struct {
	mu       sync.Mutex
	out      io.Writer
	pool     *mpb.Progress
	steps    *mpb.Bar
	rollouts *mpb.Bar
	closed   bool // the bars are gone: the run ended, or the terminal refused them
	// note is the text beside the step bar of the stage. It is read by the bar's
	// own goroutine while Emit may wait for it, hence an atomic and not the lock.
	note *atomic.Pointer[string]
	last time.Time
	now  func() time.Time
}

// NewProgress draws to out, which should be a terminal; now is the clock that
// the time left is reckoned with.
func NewProgress(out io.Writer, now func() time.Time) *Progress {
	return &Progress{
		out: out, note: &atomic.Pointer[string]{},
		pool: mpb.New(mpb.WithOutput(out), mpb.WithWidth(40), mpb.WithAutoRefresh()),
		now:  now,
	}
}

// Emit implements Sink.
func (p *Progress) Emit(e Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := e.(type) {
	case StageStarted:
		p.stage(e)
	case RolloutProgress:
		p.progress(e)
	case StepDone:
		p.setNote(noteOf(e.Metrics))
		if p.steps != nil {
			now := p.now()
			p.steps.EwmaSetCurrent(int64(e.Step), now.Sub(p.last))
			p.last = now
		}
	case RunEnded:
		p.finish()
	}
}

// Write prints text, whole lines of it, above the bars, or plainly where there
// are none; for a logger that shares the terminal with them. The pool flushes
// what it is given when it next draws, which it surely does only while a bar
// has not ended.
func (p *Progress) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.steps != nil {
		n, err := p.pool.Write(text)
		if err == nil {
			return n, nil
		}
		p.finish() // drawing failed, which ends the pool; a log must not end with it
	}
	return p.out.Write(text)
}

// Close removes the bars and waits until the terminal is ours again. It may be
// called twice.
func (p *Progress) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish()
}

// finish draws the bars for the last time. It must be called under the lock.
func (p *Progress) finish() {
	p.end()
	p.pool.Wait()
	p.closed = true
}

func (p *Progress) stage(e StageStarted) {
	p.end()
	note := &atomic.Pointer[string]{}
	note.Store(new(string))
	p.note, p.last = note, p.now()
	name := fmt.Sprintf("%-8s", e.Stage.Name)
	// A total of 0 keeps a bar from ending by itself: this one ends with its
	// stage, that of the rollouts with it.
	steps, err := p.pool.Add(0, mpb.BarStyle().Build(),
		mpb.PrependDecorators(decor.Name(name), decor.CountersNoUnit("step %d/%d")),
		mpb.AppendDecorators(
			decor.EwmaETA(decor.ET_STYLE_MMSS, 20), decor.Name(" left  "),
			decor.Any(func(decor.Statistics) string {
				return *note.Load()
			})))
	if err != nil { // the run has ended, or drawing failed: it goes on without bars
		p.finish()
		return
	}
	p.steps = steps
	p.steps.SetTotal(int64(e.Stage.Steps), false)
	p.steps.SetCurrent(int64(e.Step))
	if e.Stage.Kind != "rl" {
		return
	}
	rollouts, err := p.pool.Add(0, mpb.BarStyle().Build(),
		mpb.PrependDecorators(decor.Name("rollouts"), decor.CountersNoUnit(" %d/%d")))
	if err != nil {
		p.finish()
		return
	}
	p.rollouts = rollouts
}

func (p *Progress) setNote(text string) { p.note.Store(&text) }

func (p *Progress) progress(e RolloutProgress) {
	if p.rollouts == nil {
		return
	}
	p.rollouts.SetTotal(int64(e.All), false)
	p.rollouts.SetCurrent(int64(e.Done))
}

func (p *Progress) end() {
	for _, bar := range []*mpb.Bar{p.steps, p.rollouts} {
		if bar != nil {
			bar.Abort(false)
		}
	}
	p.steps, p.rollouts = nil, nil
}

// noteOf is the text beside the step bar: what a researcher looks at first.
func noteOf(m Metrics) string {
	var parts []string
	for _, show := range []struct{ name, label string }{
		{"accuracy/train", "accuracy"}, {"reward/mean", "reward"}, {"entropy/mean", "H"},
		{"uadt/tau", "tau"}, {"uadt/omega_mean", "omega"}, {"loss/total", "loss"},
	} {
		if v, ok := m[show.name]; ok {
			parts = append(parts, fmt.Sprintf("%s %.3f", show.label, v))
		}
	}
	return strings.Join(parts, "  ")
}
