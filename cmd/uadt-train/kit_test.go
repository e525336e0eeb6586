package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// asProgram makes the test binary the program itself, for tests that need
// another process: to kill, to limit, to be a worker.
const asProgram = "UADT_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		limitFiles(os.Getenv(fileLimit))
		main()
	}
	code := m.Run()
	if shared.dir != "" {
		if err := os.RemoveAll(shared.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// result is what a command line did.
type result struct {
	code   int
	stdout string
	stderr string
}

// invoke runs one command line in memory.
func invoke(t *testing.T, args ...string) result {
	t.Helper()
	return invokeWith(t, &Main{}, args...)
}

func invokeWith(t *testing.T, m *Main, args ...string) result {
	t.Helper()
	var out, diagnostics bytes.Buffer
	m.Stdin, m.Stdout, m.Now = strings.NewReader(""), &out, time.Now
	if m.Stderr == nil {
		m.Stderr = &diagnostics
	}
	// Without a deadline, as main has it: clients that find one wait for it.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer time.AfterFunc(5*time.Minute, cancel).Stop()
	code := m.Run(ctx, args)
	return result{code: code, stdout: out.String(), stderr: diagnostics.String()}
}

// expect fails unless r ended with code and said every one of words on stderr.
func (r result) expect(t *testing.T, code int, words ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code is %d, want %d; stderr:\n%s", r.code, code, r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.stderr, w) {
			t.Errorf("stderr does not say %q:\n%s", w, r.stderr)
		}
	}
}

// laboratory is a model and data that all tests read and none writes.
type laboratory struct {
	once  sync.Once
	dir   string
	err   error
	whole sync.Once
}

var shared laboratory

// lab makes the shared model and data at the first call.
func lab(t *testing.T) *laboratory {
	t.Helper()
	shared.once.Do(func() {
		if shared.dir, shared.err = os.MkdirTemp("", "uadt-lab-"); shared.err != nil {
			return
		}
		for _, args := range [][]string{
			{"model", "init", "--out", shared.path("model"), "--seed", "1", "--layers", "1", "--vision-depth", "2"},
			{"data", "phantom", "--out", shared.path("data"), "--captions", "8", "--sft", "16", "--train", "16",
				"--in-domain", "8", "--size", "28", "--kinds", "truefalse", "--long-share", "0"},
		} {
			if r := invoke(t, args...); r.code != 0 {
				shared.err = fmt.Errorf("%v: exit code %d: %s", args, r.code, r.stderr)
				return
			}
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return &shared
}

func (l *laboratory) path(parts ...string) string {
	return filepath.Join(append([]string{l.dir}, parts...)...)
}

// recipe is the text of a configuration on the shared model and data: three
// stages whose SFT is long enough that rewards differ within groups.
func (l *laboratory) recipe(runs string) string {
	return fmt.Sprintf(`name: tiny
seed: 3
runs_dir: %s
model: {path: %s, max_pixels: 12544}
data: {prompts: micro, images_first: true}
stages:
  - {name: align, kind: align, data: %[3]s/captions.json, steps: 3, batch: 4, learning_rate: 1e-3}
  - {name: sft, kind: sft, data: %[3]s/sft.json, steps: 50, batch: 16, learning_rate: 4e-3, decay: linear}
  - {name: rl, kind: rl, data: %[3]s/train.json, steps: 3, learning_rate: 1e-4}
rollout: {group_size: 4, questions_per_step: 4, max_tokens: 32, concurrency: 4}
eval: {data: %[3]s/in_domain.json, questions: 4, traces: 2}
checkpoint: {every: 20}
`, runs, l.path("model"), l.path("data"))
}

// rlOnly is a recipe of one RL step from the untrained model.
func (l *laboratory) rlOnly(runs string) string {
	return fmt.Sprintf(`name: tiny
seed: 3
runs_dir: %s
model: {path: %s, max_pixels: 12544}
data: {prompts: micro, images_first: true}
stages:
  - {name: rl, kind: rl, data: %s/train.json, steps: 1, learning_rate: 1e-4}
rollout: {group_size: 4, questions_per_step: 4, max_tokens: 8, concurrency: 4, timeout: 2s}
`, runs, l.path("model"), l.path("data"))
}

// writeRecipe puts a recipe into a fresh directory, whose runs go beside it.
func writeRecipe(t *testing.T, text func(runs string) string) (file, runs string) {
	t.Helper()
	dir := t.TempDir()
	runs = filepath.Join(dir, "runs")
	return writeFile(t, filepath.Join(dir, "recipe.yaml"), []byte(text(runs))), runs
}

func writeFile(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// unbroken runs the shared recipe once, and returns its directory.
func (l *laboratory) unbroken(t *testing.T) string {
	t.Helper()
	l.whole.Do(func() {
		recipe := writeFile(t, l.path("recipe.yaml"), []byte(l.recipe(l.path("runs"))))
		invoke(t, "--config", recipe).expect(t, exitDone)
	})
	return l.path("runs", "tiny")
}

// requireUntouched fails unless dir is as it was when before was listed.
func requireUntouched(t *testing.T, dir string, before []string) {
	t.Helper()
	after := tree(t, dir)
	for _, line := range after {
		if !slices.Contains(before, line) {
			t.Errorf("changed or new: %s", line)
		}
	}
	for _, line := range before {
		if !slices.Contains(after, line) {
			t.Errorf("changed or gone: %s", line)
		}
	}
}

// tree lists every file below dir with size and time of change, less the lock
// of a run, which whoever looks into a run must take.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.Name() == "lock" {
			return nil
		}
		out = append(out, fmt.Sprintf("%s %d %s", path, info.Size(), info.ModTime()))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// timing says whether a metric depends on the clock or on the machine.
func timing(name string) bool {
	return name == "time" || strings.HasPrefix(name, "seconds/") || strings.HasSuffix(name, "/seconds") ||
		strings.HasSuffix(name, "tokens_per_second") || strings.HasSuffix(name, "_bytes")
}

// outcome is what must be equal between runs: the digest of the weights and the
// metrics less timings. Lines are sorted: an evaluation runs beside the training
// of the next step, and either may be written first.
func outcome(t *testing.T, run string) string {
	t.Helper()
	lines, err := readMetrics(run)
	if err != nil {
		t.Fatal(err)
	}
	texts := make([]string, 0, len(lines))
	for _, line := range lines {
		for name := range line {
			if timing(name) {
				delete(line, name)
			}
		}
		text, err := json.Marshal(line) // keys are sorted
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, fmt.Sprintf("%6v %s", line["step"], text))
	}
	sort.Strings(texts)
	return finalDigest(t, run) + "\n" + strings.Join(texts, "\n")
}

// lastCheckpoint is the directory of the policy that a run ended with.
func lastCheckpoint(t *testing.T, run string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(run, "checkpoints", "step-*"))
	if err != nil || len(found) == 0 {
		t.Fatalf("%s has no checkpoint (%v)", run, err)
	}
	sort.Strings(found)
	return found[len(found)-1]
}

func finalDigest(t *testing.T, run string) string {
	t.Helper()
	digest, err := modelDigest(filepath.Join(lastCheckpoint(t, run), "policy"))
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

// requireSame fails at the first line in which two outcomes differ.
func requireSame(t *testing.T, got, want string) {
	t.Helper()
	a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
	if len(a) != len(b) {
		t.Errorf("%d lines of metrics, want %d", len(a)-1, len(b)-1)
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Fatalf("line %d differs:\n%s\nwant\n%s", i, a[i], b[i])
		}
	}
}
