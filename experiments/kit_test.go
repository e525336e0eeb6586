package experiments

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

// clock is a fixed time, so that records compare.
func clock() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

// spec is a run in dir with one setting of each class, after change.
func spec(dir string, change func(*Spec)) Spec {
	s := Spec{
		Dir: dir, Config: []byte("name: test\n"), Program: "v0-test", Now: clock,
		Settings: []Setting{
			{"seed", ClassIdentity, "7"}, {"rollout.servers", ClassPlacement, "a"}, {"stages.0.steps", ClassHorizon, "10"},
		},
	}
	if change != nil {
		change(&s)
	}
	return s
}

// set changes the value of one setting.
func set(key, value string) func(*Spec) {
	return func(s *Spec) {
		for i := range s.Settings {
			if s.Settings[i].Key == key {
				s.Settings[i].Value = value
			}
		}
	}
}

// mustOpen opens a run that is closed when the test ends.
func mustOpen(t *testing.T, s Spec) *Run {
	t.Helper()
	return mustOpenOn(t, s, disk{})
}

func mustOpenOn(t *testing.T, s Spec, d disk) *Run {
	t.Helper()
	r, err := open(s, d)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return r
}

func mustClose(t *testing.T, r *Run) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// quota is a disk that takes so many more bytes and is then full.
type quota struct {
	left int
	on   bool
}

func (q *quota) disk() disk { return disk{wrap: q.wrap} }

func (q *quota) wrap(w io.Writer) io.Writer { return &limited{w, q} }

// limited writes what fits and then fails as a full disk does: part of the data
// is in the file.
type limited struct {
	to io.Writer
	q  *quota
}

func (l *limited) Write(p []byte) (int, error) {
	if !l.q.on || len(p) <= l.q.left {
		l.q.left -= len(p)
		return l.to.Write(p)
	}
	n, err := l.to.Write(p[:max(l.q.left, 0)])
	l.q.left = 0
	if err != nil {
		return n, err
	}
	return n, syscall.ENOSPC
}

// tree lists every file below dir with its content, without lock and times.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || name == "lock" {
			return err
		}
		if e.IsDir() {
			out[name+"/"] = ""
			return nil
		}
		data, err := os.ReadFile(path)
		out[name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// sameTree fails unless dir is as it was.
func sameTree(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := tree(t, dir)
	for name, data := range want {
		if now, ok := got[name]; !ok || now != data {
			t.Errorf("%s: %q, was %q", name, now, data)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s is new", name)
		}
	}
}

// noLeftovers fails if anything half-written lies in dir.
func noLeftovers(t *testing.T, dir string) {
	t.Helper()
	for name := range tree(t, dir) {
		if isTemp(filepath.Base(strings.TrimSuffix(name, "/"))) {
			t.Errorf("%s was left behind", name)
		}
	}
}

// sampleGroups are two groups with everything that a group can have.
func sampleGroups() []rollout.Group {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	policy := rollout.Policy{Incarnation: 3, Version: 4, Digest: "abc"}
	return []rollout.Group{
		{
			Job: "rl-0-0", QuestionID: "q1", PromptTokens: []int32{1, 2, 3}, PolicySent: policy, PolicyReceived: policy,
			Server: "s1", Seed: 1 << 40, Started: at, Finished: at.Add(time.Second),
			Traces: []rollout.Trace{
				{Tokens: []int32{5, 6}, Logprobs: []float32{-0.5, -1.25}, TopKEntropy: []float32{0.1, 0.2}, Text: "<think>\nviele Mikroaneurysmen: 微\x00", Finish: rollout.FinishStop},
				{Tokens: []int32{7}, Logprobs: []float32{-2}, TopKEntropy: []float32{0.3}, Text: "cut", Finish: rollout.FinishLength},
			},
		},
		{
			Job: "rl-0-1", QuestionID: "q2", PolicySent: policy, PolicyReceived: policy, Server: "s2",
			Traces: []rollout.Trace{
				{Tokens: []int32{}, Logprobs: []float32{}, Text: "", Finish: rollout.FinishAbort},
				{Tokens: []int32{8, 9}, Text: string([]byte{0xff, 0xfe}), Finish: rollout.FinishStop},
				{Finish: rollout.FinishAbort},
			},
		},
	}
}

// seal writes a checkpoint with one weight file.
func seal(t *testing.T, r *Run, step int, pin bool) string {
	t.Helper()
	dir, err := r.OpenCheckpoint(context.Background(), step)
	if err != nil {
		t.Fatal(err)
	}
	fillCheckpoint(t, dir, step)
	dir, err = r.SealCheckpoint(context.Background(), step, state(step), pin)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func state(step int) []byte { return fmt.Appendf(nil, `{"step":%d}`, step) }

func fillCheckpoint(t *testing.T, dir string, step int) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "policy"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "policy", "model.safetensors"), fmt.Appendf(nil, "weights %d", step), 0o644); err != nil {
		t.Fatal(err)
	}
}

// warnings collects what is logged.
func warnings(s *Spec, into io.Writer) { s.Logger = slog.New(slog.NewTextHandler(into, nil)) }
