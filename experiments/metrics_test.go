package experiments

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func put(t *testing.T, r *Run, kind string, step int, values map[string]any) {
	t.Helper()
	if err := r.PutMetrics(context.Background(), kind, step, values); err != nil {
		t.Fatal(err)
	}
}

func text(t *testing.T, r *Run) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(r.Dir(), "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestMetricsAreLines(t *testing.T) {
	r := mustOpen(t, spec(t.TempDir(), nil))
	put(t, r, "step", 1, map[string]any{"uadt/tau": 0.25, "stage": "rl", "time": "now", "policy_version": int64(1), "reward/mean": 0.5,
		"loss/total": math.NaN(), "grad/norm": math.Inf(1)})
	put(t, r, "eval", 1, map[string]any{"accuracy/eval": 1.0, "note": "a \"quoted\"\nline"})
	want := `{"kind":"step","step":1,"stage":"rl","policy_version":1,"time":"now","reward/mean":0.5,"uadt/tau":0.25}
{"kind":"eval","step":1,"accuracy/eval":1,"note":"a \"quoted\"\nline"}
`
	if got := text(t, r); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestMetricsReplaceAnEarlierLine(t *testing.T) {
	r := mustOpen(t, spec(t.TempDir(), nil))
	for step := range 3 {
		put(t, r, "step", step, map[string]any{"x": float64(step)})
	}
	put(t, r, "step", 1, map[string]any{"x": 9.5})
	put(t, r, "step", 3, map[string]any{"x": 3.0})
	want := `{"kind":"step","step":0,"x":0}
{"kind":"step","step":1,"x":9.5}
{"kind":"step","step":2,"x":2}
{"kind":"step","step":3,"x":3}
`
	if got := text(t, r); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestMetricsRefuseOtherTypes(t *testing.T) {
	r := mustOpen(t, spec(t.TempDir(), nil))
	for _, value := range []any{1, float32(1), nil, []string{"a"}, true} {
		err := r.PutMetrics(context.Background(), "step", 4, map[string]any{"odd": value})
		if err == nil || !strings.Contains(err.Error(), "odd") || !strings.Contains(err.Error(), "step 4") {
			t.Errorf("%T: %v", value, err)
		}
	}
	if _, err := os.Stat(filepath.Join(r.Dir(), "metrics.jsonl")); err == nil {
		t.Error("something was written")
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.PutMetrics(ended, "step", 1, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestMetricsSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	r := mustOpen(t, spec(dir, nil))
	put(t, r, "step", 1, map[string]any{"x": 1.0})
	mustClose(t, r)
	r = mustOpen(t, spec(dir, nil))
	put(t, r, "step", 1, map[string]any{"x": 2.0})
	put(t, r, "step", 2, map[string]any{"x": 3.0})
	want := "{\"kind\":\"step\",\"step\":1,\"x\":2}\n{\"kind\":\"step\",\"step\":2,\"x\":3}\n"
	if got := text(t, r); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// What a crash left of a line is cut off; any other damage is named.
func TestMetricsAfterACrash(t *testing.T) {
	const whole = "{\"kind\":\"step\",\"step\":1,\"x\":1}\n"
	for _, torn := range []string{"{", `{"kind":"step","step":2`, `{"kind":"step","step":2,"x":1}`} {
		dir := t.TempDir()
		mustClose(t, mustOpen(t, spec(dir, nil)))
		path := filepath.Join(dir, "metrics.jsonl")
		if err := os.WriteFile(path, []byte(whole+torn), 0o644); err != nil {
			t.Fatal(err)
		}
		r := mustOpen(t, spec(dir, nil))
		if got := text(t, r); got != whole {
			t.Errorf("torn %q: %q", torn, got)
		}
		put(t, r, "step", 2, nil)
		if got := text(t, r); got != whole+"{\"kind\":\"step\",\"step\":2}\n" {
			t.Errorf("torn %q, then a line: %q", torn, got)
		}
	}
	for _, bad := range []string{"nonsense\n", "{\"step\":1}\n", "{\"kind\":\"step\"}\n", "{\"kind\":1,\"step\":1}\n", "\n"} {
		dir := t.TempDir()
		mustClose(t, mustOpen(t, spec(dir, nil)))
		if err := os.WriteFile(filepath.Join(dir, "metrics.jsonl"), []byte(whole+bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(spec(dir, nil)); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// A line that does not fit on the disk leaves nothing of itself, and the next
// one that fits is whole.
func TestMetricsOnAFullDisk(t *testing.T) {
	q := &quota{}
	r := mustOpenOn(t, spec(t.TempDir(), nil), q.disk())
	put(t, r, "step", 1, map[string]any{"x": 1.0})
	before := text(t, r)
	q.on = true
	for _, room := range []int{0, 1, 20} {
		for _, step := range []int{1, 2} { // a rewrite and an append
			q.left = room
			if err := r.PutMetrics(context.Background(), "step", step, map[string]any{"x": 2.0}); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("room for %d: %v", room, err)
			}
			if got := text(t, r); got != before {
				t.Errorf("room for %d: %q", room, got)
			}
		}
	}
	noLeftovers(t, r.Dir())
	q.on = false
	put(t, r, "step", 2, map[string]any{"x": 2.0})
	if got, want := text(t, r), before+"{\"kind\":\"step\",\"step\":2,\"x\":2}\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Lines of several goroutines stay whole.
func TestMetricsFromSeveralGoroutines(t *testing.T) {
	r := mustOpen(t, spec(t.TempDir(), nil))
	var hands sync.WaitGroup
	for g := range 4 {
		hands.Go(func() {
			for step := range 10 {
				if err := r.PutMetrics(context.Background(), fmt.Sprint("kind", g), step, map[string]any{"x": float64(step)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	hands.Wait()
	lines := strings.Split(strings.TrimSuffix(text(t, r), "\n"), "\n")
	if len(lines) != 40 {
		t.Errorf("%d lines, want 40", len(lines))
	}
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			t.Errorf("broken line %q", line)
		}
	}
}

func FuzzParseMetrics(f *testing.F) {
	f.Add([]byte("{\"kind\":\"step\",\"step\":1,\"x\":1}\n{\"kind\":\"eval\",\"step\":2}\ntorn"))
	f.Add([]byte("\n"))
	f.Add([]byte("{\"kind\":null,\"step\":1}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		lines, err := parseMetrics(data)
		if err != nil {
			return
		}
		whole := 0
		for _, l := range lines {
			whole += len(l.text)
		}
		if whole > len(data) || whole < len(data) && strings.Contains(string(data[whole:]), "\n") {
			t.Fatalf("%d bytes in lines of %q", whole, data)
		}
	})
}
