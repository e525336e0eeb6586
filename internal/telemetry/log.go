package telemetry

import (
	"log/slog"
	"sort"
	"strings"
	"sync"
)

// Log is a sink that writes a line for each event to a structured logger.
type Log struct {
	logger *slog.Logger
	// steps is whether StepDone is written: a progress display does it better.
	steps bool

	mu     sync.Mutex
	alarms map[string]int // how often each was raised
}

// NewLog returns a sink that writes to logger; steps says whether a line a step
// is wanted, which it is where no progress bar is drawn.
func NewLog(logger *slog.Logger, steps bool) *Log {
	return &Log{logger: logger, steps: steps, alarms: map[string]int{}}
}

// headline lists the metrics of a step's line, in this order, where present.
var headline = []string{
	"reward/mean", "accuracy/train", "accuracy/eval", "accuracy/eval_greedy", "loss/total", "entropy/mean",
	"uadt/tau", "uadt/omega_mean", "uadt/zero_variance_groups", "rollout/length_mean", "seconds/step",
}

// Emit implements Sink.
func (l *Log) Emit(e Event) {
	switch e := e.(type) {
	case RunStarted:
		l.logger.Info("run started", "run", e.Run, "resumed", e.Resumed, "after_step", e.Step, "incarnation", e.Incarnation)
	case StageStarted:
		l.logger.Info("stage started", "stage", e.Stage.Name, "kind", e.Stage.Kind, "steps", e.Stage.Steps, "done", e.Step)
	case GroupDropped:
		l.logger.Warn("group dropped", "job", e.Job, "reason", e.Reason, "error", errorText(e.Err))
	case StepDone:
		if l.steps {
			l.logger.Info("step", append([]any{"stage", e.Stage, "step", e.Step}, pick(e.Metrics)...)...)
		}
	case Evaluated:
		l.logger.Info("evaluated", append([]any{"stage", e.Stage, "step", e.Global}, all(e.Metrics)...)...)
	case Alarm:
		if n := l.raised(e.Name); isRound(n) {
			l.logger.Warn("alarm: "+e.Name, "step", e.Step, "message", e.Message, "times", n)
		}
	case PolicyAdopted:
		l.logger.Debug("policy adopted", "policy", e.Policy, "servers", e.Servers, "failed", e.Failed, "seconds", e.Seconds)
	case CheckpointSaved:
		l.logger.Info("checkpoint saved", "step", e.Step, "path", e.Path, "seconds", e.Seconds)
	case RunEnded:
		l.logger.Info("run ended", append([]any{"run", e.Run, "finished", e.Finished, "step", e.Step, "digest", e.Digest}, l.summary()...)...)
	}
}

// raised counts an alarm.
func (l *Log) raised(name string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.alarms[name]++
	return l.alarms[name]
}

// isRound says whether n is a power of ten: a condition that lasts is said when
// it begins and then more and more rarely.
func isRound(n int) bool {
	for n > 0 && n%10 == 0 {
		n /= 10
	}
	return n == 1
}

// summary lists how often each alarm was raised, as slog attributes.
func (l *Log) summary() []any {
	l.mu.Lock()
	defer l.mu.Unlock()
	names := make([]string, 0, len(l.alarms))
	for name := range l.alarms {
		names = append(names, name)
	}
	sort.Strings(names)
	var out []any
	for _, name := range names {
		out = append(out, slog.Int("alarm."+name, l.alarms[name]))
	}
	return out
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// pick returns the headline metrics that m has, as slog attributes.
func pick(m Metrics) []any {
	var out []any
	for _, name := range headline {
		if v, ok := m[name]; ok {
			out = append(out, slog.Float64(strings.ReplaceAll(name, "/", "."), v))
		}
	}
	return out
}

// all returns every metric of m by name, as slog attributes.
func all(m Metrics) []any {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	sort.Strings(names)
	out := make([]any, 0, len(names))
	for _, name := range names {
		out = append(out, slog.Float64(strings.ReplaceAll(name, "/", "."), m[name]))
	}
	return out
}
