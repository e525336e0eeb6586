package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// terminal is a writer that refuses some writes.
type terminal struct {
	mu      sync.Mutex
	all     bytes.Buffer
	broken  bool
	refused chan struct{} // closed at the first write that was refused
	once    sync.Once
}

func newTerminal(broken bool) *terminal {
	return &terminal{broken: broken, refused: make(chan struct{})}
}

// Write implements io.Writer.
func (w *terminal) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken {
		w.once.Do(func() { close(w.refused) })
		return 0, errors.New("input/output error")
	}
	return w.all.Write(p)
}

func (w *terminal) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = false
}

func (w *terminal) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all.String()
}

// drawing returns bars that are drawn on out.
func drawing(t *testing.T, out io.Writer) *Progress {
	t.Helper()
	p := NewProgress(out, time.Now)
	t.Cleanup(p.Close)
	p.Emit(StageStarted{Stage: StagePlan{Name: "think", Kind: "rl", Steps: 3}})
	return p
}

// A terminal that refuses the bars takes neither the run nor its log with it:
// no event panics, and lines are written again as soon as they can be.
func TestATerminalThatFailsEndsTheBarsOnly(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]func(*Progress){
		"a line":      func(p *Progress) { p.Emit(step(1, nil)) },
		"a stage":     func(p *Progress) { p.Emit(StageStarted{Stage: StagePlan{Name: "more", Kind: "rl", Steps: 2}}) },
		"supervised":  func(p *Progress) { p.Emit(StageStarted{Stage: StagePlan{Name: "more", Kind: "sft", Steps: 2}}) },
		"the end":     func(p *Progress) { p.Emit(RunEnded{}) },
		"the closing": func(p *Progress) { p.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := newTerminal(true)
			p := drawing(t, out)
			<-out.refused
			if n, err := io.WriteString(p, "lost\n"); err == nil || n != 0 {
				t.Errorf("a line that the terminal refused was taken: %d, %v", n, err)
			}
			out.mend()
			next(p)
			p.Emit(RolloutProgress{Done: 1, All: 4})
			p.Emit(step(2, Metrics{"uadt/tau": 0.5}))
			if _, err := io.WriteString(p, "found\n"); err != nil {
				t.Error(err)
			}
			if got := out.text(); got != "found\n" {
				t.Errorf("the terminal shows %q", got)
			}
		})
	}
}

// A stage that begins when drawing has failed, and nobody wrote a line since.
func TestAStageAfterTheTerminalFailed(t *testing.T) {
	t.Parallel()
	out := newTerminal(true)
	p := drawing(t, out)
	<-out.refused
	p.Emit(StageStarted{Stage: StagePlan{Name: "more", Kind: "rl", Steps: 2}})
	p.Emit(StageStarted{Stage: StagePlan{Name: "more", Kind: "sft", Steps: 2}})
}

// An evaluation or a stage that comes after the end draws nothing and harms
// nothing: it may have been on its way.
func TestEventsAfterTheEnd(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := drawing(t, &out)
	p.Emit(RunEnded{})
	drawn := out.Len()
	for _, e := range []Event{StageStarted{Stage: StagePlan{Name: "late", Kind: "rl", Steps: 1}}, RolloutProgress{All: 2}, step(1, nil), Evaluated{}, RunEnded{}} {
		p.Emit(e)
	}
	if out.Len() != drawn {
		t.Errorf("drawn after the end: %q", out.String()[drawn:])
	}
}

// Whatever order stages, steps and log lines come in, and from wherever, each
// line reaches the terminal once, whole, and in its writer's order.
func TestLinesAmongBars(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		var out bytes.Buffer
		p := NewProgress(&out, time.Now)
		log := NewLog(slog.New(slog.NewTextHandler(p, nil)), false)
		Tee(p, log).Emit(RunStarted{Run: "r"})
		want := []string{"run started"}
		global := 0
		for stage := range rapid.IntRange(0, 3).Draw(rt, "stages") {
			plan := StagePlan{Name: fmt.Sprintf("s%d", stage), Kind: rapid.SampledFrom([]string{"rl", "sft"}).Draw(rt, "kind"), Steps: rapid.IntRange(0, 3).Draw(rt, "steps")}
			events := []Event{StageStarted{Stage: plan, Step: rapid.IntRange(0, plan.Steps).Draw(rt, "done")}}
			for n := range plan.Steps {
				global++
				events = append(events, RolloutProgress{Done: n, All: 4}, step(n+1, Metrics{"uadt/tau": 0.5}), CheckpointSaved{Step: global, Path: fmt.Sprintf("p-%d-", global)})
				want = append(want, fmt.Sprintf("path=p-%d-", global))
			}
			for _, e := range events {
				Tee(p, log).Emit(e)
			}
		}
		if rapid.Bool().Draw(rt, "ended") { // and not failed
			Tee(p, log).Emit(RunEnded{Run: "r"})
			want = append(want, "run ended")
		}
		p.Close()
		rest := out.String()
		for _, line := range want {
			at := strings.Index(rest, line)
			if at < 0 || strings.Count(out.String(), line) != 1 {
				rt.Fatalf("%q is not there once and in order:\n%q", line, out.String())
			}
			rest = rest[at:]
		}
	})
}

// Writers and events from several goroutines; for the race detector, and so
// that nothing waits for itself.
func TestBarsAreSharedByGoroutines(t *testing.T) {
	t.Parallel()
	out := newTerminal(false)
	p := drawing(t, out)
	var group sync.WaitGroup
	for g := range 4 {
		group.Go(func() {
			for n := range 25 {
				fmt.Fprintf(p, "<%d %d>\n", g, n)
				p.Emit(RolloutProgress{Done: n, All: 25})
				p.Emit(step(n%3, nil))
			}
		})
	}
	group.Wait()
	p.Close()
	for g := range 4 {
		last := -1
		for n := range 25 {
			at := strings.Index(out.text(), fmt.Sprintf("<%d %d>\n", g, n))
			if at <= last {
				t.Fatalf("line %d of writer %d is missing or out of order", n, g)
			}
			last = at
		}
	}
}

// The text beside the bar holds what a step has, in one order, and nothing of
// what it lacks: a number that is not known is not shown as 0.
func TestNoteShowsWhatThereIs(t *testing.T) {
	labels := map[string]string{"accuracy/train": "accuracy", "reward/mean": "reward", "entropy/mean": "H", "uadt/tau": "tau", "uadt/omega_mean": "omega", "loss/total": "loss"}
	names := []string{"accuracy/train", "reward/mean", "entropy/mean", "uadt/tau", "uadt/omega_mean", "loss/total", "seconds/step"}
	rapid.Check(t, func(t *rapid.T) {
		m := Metrics{}
		var want []string
		for _, name := range names {
			if rapid.Bool().Draw(t, name) {
				m[name] = rapid.Float64Range(-9, 9).Draw(t, "value")
				if label := labels[name]; label != "" {
					want = append(want, fmt.Sprintf("%s %.3f", label, m[name]))
				}
			}
		}
		if got := noteOf(m); got != strings.Join(want, "  ") {
			t.Fatalf("%q, want %q", got, want)
		}
	})
}
