package experiments

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/rollout"
)

// Any sequence of writes on a disk that fills up at any byte: a write that
// fails changes nothing, one that succeeds is there, after a restart too.
func TestAnyWritesOnAFullDisk(t *testing.T) {
	base := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		dir := fmt.Sprintf("%s/%d", base, n)
		q := &quota{}
		r, err := open(spec(dir, func(s *Spec) { s.Keep = 100 }), q.disk())
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		m := model{rollouts: map[int]string{}, ledgers: map[int]string{}, metrics: map[int]string{}, checkpoints: map[int]string{}}
		for i := range rapid.IntRange(1, 8).Draw(t, "writes") {
			step, value := rapid.IntRange(0, 3).Draw(t, "step"), fmt.Sprint("value ", i)
			q.on, q.left = rapid.Bool().Draw(t, "full"), rapid.IntRange(0, 3000).Draw(t, "room")
			m.write(t, r, rapid.IntRange(0, 3).Draw(t, "what"), step, value)
			q.on = false
			m.compare(t, r)
		}
		if err := r.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
		if r, err = open(spec(dir, nil), disk{}); err != nil {
			t.Fatalf("open again: %v", err)
		}
		m.compare(t, r)
		if err := r.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	})
}

// model is what a run directory should hold: a value a step.
type model struct {
	rollouts, ledgers, metrics, checkpoints map[int]string
}

// write writes one thing and, if that succeeds, remembers it.
func (m *model) write(t *rapid.T, r *Run, what, step int, value string) {
	ctx := context.Background()
	var err error
	var into map[int]string
	switch what {
	case 0:
		into, err = m.rollouts, r.PutRollout(ctx, step, []byte(value), []rollout.Group{{Job: "j"}})
	case 1:
		into, err = m.ledgers, r.PutLedger(ctx, step, []map[string]any{{"run": value}}, nil)
	case 2:
		into, err = m.metrics, r.PutMetrics(ctx, "step", step, map[string]any{"v": value})
	case 3:
		into = m.checkpoints
		if _, err = r.OpenCheckpoint(ctx, step); err == nil {
			_, err = r.SealCheckpoint(ctx, step, []byte(value), false)
		}
	}
	if err == nil {
		into[step] = value
	} else if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("write %d of step %d: %v", what, step, err)
	}
}

// compare reads everything back.
func (m *model) compare(t *rapid.T, r *Run) {
	for step := range 4 {
		meta, _, err := r.Rollout(context.Background(), step)
		if want, ok := m.rollouts[step]; ok != (err == nil) || string(meta) != want {
			t.Fatalf("rollout %d is %q (%v), want %q", step, meta, err, want)
		}
		rows, err := ReadLedger(r.ledgerPath(step))
		if want, ok := m.ledgers[step]; ok != (err == nil) || ok && rows[0]["run"] != want {
			t.Fatalf("ledger %d is %v (%v), want %q", step, rows, err, want)
		}
		point, err := r.checkpoint(step)
		if want, ok := m.checkpoints[step]; ok != (err == nil) || ok && string(point.State) != want {
			t.Fatalf("checkpoint %d is %+v (%v), want %q", step, point, err, want)
		}
	}
	if len(r.metrics.lines) != len(m.metrics) {
		t.Fatalf("%d lines of metrics, want %d", len(r.metrics.lines), len(m.metrics))
	}
	for _, l := range r.metrics.lines {
		want, err := encodeMetrics("step", l.key.Step, map[string]any{"v": m.metrics[l.key.Step]})
		if err != nil || string(l.text) != string(want) {
			t.Fatalf("line %q (%v), want %q", l.text, err, want)
		}
	}
}
