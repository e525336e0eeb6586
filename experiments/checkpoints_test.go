package experiments

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func latest(t *testing.T, r *Run) *Point {
	t.Helper()
	p, err := r.Latest()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func steps(t *testing.T, r *Run) []int {
	t.Helper()
	s, err := r.Checkpoints()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCheckpointIsFoundAgain(t *testing.T) {
	dir := t.TempDir()
	r := mustOpen(t, spec(dir, nil))
	if p := latest(t, r); p != nil {
		t.Errorf("a checkpoint in an empty run: %+v", p)
	}
	sealed := seal(t, r, 10, false)
	seal(t, r, 20, true)
	want := &Point{Step: 20, Dir: filepath.Join(dir, "checkpoints", "step-000020"), State: state(20), Pinned: true}
	if got := latest(t, r); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	mustClose(t, r)
	if got := latest(t, mustOpen(t, spec(dir, nil))); !reflect.DeepEqual(got, want) {
		t.Errorf("after a restart: %+v, want %+v", got, want)
	}
	if got := tree(t, sealed); got["policy/model.safetensors"] != "weights 10" || got["state.json"] != string(state(10)) {
		t.Errorf("files %v", got)
	}
	noLeftovers(t, dir)
}

func TestUnsealedCheckpointIsNone(t *testing.T) {
	dir := t.TempDir()
	r := mustOpen(t, spec(dir, nil))
	seal(t, r, 10, false)
	partial, err := r.OpenCheckpoint(context.Background(), 20)
	if err != nil {
		t.Fatal(err)
	}
	fillCheckpoint(t, partial, 20)
	if got := steps(t, r); !slices.Equal(got, []int{10}) {
		t.Errorf("checkpoints %v", got)
	}
	again, err := r.OpenCheckpoint(context.Background(), 20)
	if err != nil || again != partial || len(tree(t, again)) != 1 {
		t.Errorf("opened again: %s %v (%v)", again, tree(t, again), err)
	}
	mustClose(t, r)
	mustOpen(t, spec(dir, nil))
	noLeftovers(t, dir)
}

// A crash after the manifest and before the renaming: the manifest decides.
func TestSealIsFinishedAfterACrash(t *testing.T) {
	dir := t.TempDir()
	r := mustOpen(t, spec(dir, nil))
	for _, step := range []int{10, 20} {
		if err := os.Rename(seal(t, r, step, false), r.checkpointDir(step)+partialSuffix); err != nil {
			t.Fatal(err)
		}
	}
	// The second one is damaged: it was not sealed.
	if err := os.WriteFile(filepath.Join(r.checkpointDir(20)+partialSuffix, "state.json"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	mustClose(t, r)
	r = mustOpen(t, spec(dir, nil))
	if got := steps(t, r); !slices.Equal(got, []int{10}) {
		t.Errorf("checkpoints %v", got)
	}
	noLeftovers(t, dir)
}

func TestSealReplacesACheckpointOfTheSameStep(t *testing.T) {
	r := mustOpen(t, spec(t.TempDir(), nil))
	seal(t, r, 10, false)
	dir, err := r.OpenCheckpoint(context.Background(), 10)
	if err != nil {
		t.Fatal(err)
	}
	if got := steps(t, r); !slices.Equal(got, []int{10}) {
		t.Errorf("while it is written: %v", got)
	}
	fillCheckpoint(t, dir, 11)
	if _, err := r.SealCheckpoint(context.Background(), 10, []byte("new"), false); err != nil {
		t.Fatal(err)
	}
	if got := latest(t, r); got.Step != 10 || string(got.State) != "new" {
		t.Errorf("%+v", got)
	}
	noLeftovers(t, r.Dir())
}

func TestPruningKeepsTheNewestAndThePinned(t *testing.T) {
	r := mustOpen(t, spec(t.TempDir(), func(s *Spec) { s.Keep = 2 }))
	for step := 1; step <= 6; step++ {
		seal(t, r, step, step == 1 || step == 3)
	}
	if got, want := steps(t, r), []int{1, 3, 5, 6}; !slices.Equal(got, want) {
		t.Errorf("checkpoints %v, want %v", got, want)
	}
	noLeftovers(t, r.Dir())
}

// What cannot be read is neither removed nor counted.
func TestPruningLeavesWhatItCannotRead(t *testing.T) {
	var log bytes.Buffer
	r := mustOpen(t, spec(t.TempDir(), func(s *Spec) { s.Keep = 1; warnings(s, &log) }))
	dir := seal(t, r, 1, false)
	if err := os.WriteFile(filepath.Join(dir, manifestName), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	seal(t, r, 2, false)
	seal(t, r, 3, false)
	if got := steps(t, r); !slices.Equal(got, []int{1, 3}) {
		t.Errorf("checkpoints %v", got)
	}
	if !strings.Contains(log.String(), "step-000001") {
		t.Errorf("log %q", log.String())
	}
}

// A newest checkpoint that is not whole is passed over, with a warning.
func TestLatestPassesOverDamage(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"no manifest":  func(dir string) error { return os.Remove(filepath.Join(dir, manifestName)) },
		"no state":     func(dir string) error { return os.Remove(filepath.Join(dir, "state.json")) },
		"weights gone": func(dir string) error { return os.RemoveAll(filepath.Join(dir, "policy")) },
		"weights cut":  func(dir string) error { return os.Truncate(filepath.Join(dir, "policy", "model.safetensors"), 3) },
		"a bit turned": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "state.json"), []byte(`{"step":21}`), 0o644)
		},
		"another step":   func(dir string) error { return rewrite(dir, `"step": 20`, `"step": 21`) },
		"other version":  func(dir string) error { return rewrite(dir, `"version": 1`, `"version": 2`) },
		"path upwards":   func(dir string) error { return rewrite(dir, `"policy/`, `"../`) },
		"state not told": func(dir string) error { return rewrite(dir, `"state.json"`, `"policy/model.safetensors"`) },
	} {
		var log bytes.Buffer
		r := mustOpen(t, spec(t.TempDir(), func(s *Spec) { warnings(s, &log) }))
		seal(t, r, 10, false)
		if err := damage(seal(t, r, 20, false)); err != nil {
			t.Fatal(err)
		}
		if p := latest(t, r); p == nil || p.Step != 10 {
			t.Errorf("%s: %+v", name, p)
		}
		if !strings.Contains(log.String(), "step=20") {
			t.Errorf("%s: no warning in %q", name, log.String())
		}
	}
}

func rewrite(dir, from, to string) error {
	path := filepath.Join(dir, manifestName)
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	changed := strings.Replace(string(data), from, to, 1)
	if changed == string(data) {
		return errors.New("nothing to damage: " + from)
	}
	return os.WriteFile(path, []byte(changed), 0o644)
}

func TestSealRefuses(t *testing.T) {
	r := mustOpen(t, spec(t.TempDir(), nil))
	if _, err := r.SealCheckpoint(context.Background(), 5, nil, false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("never opened: %v", err)
	}
	if _, err := r.OpenCheckpoint(context.Background(), -1); err == nil {
		t.Error("step -1 was opened")
	}
	dir, err := r.OpenCheckpoint(context.Background(), 5)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.SealCheckpoint(context.Background(), 5, nil, false); err == nil || !strings.Contains(err.Error(), "plain file") {
		t.Errorf("a link: %v", err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.OpenCheckpoint(ended, 6); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, err := r.SealCheckpoint(ended, 6, nil, false); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// A disk that fills up while a checkpoint is sealed leaves none of that step,
// and those before untouched.
func TestSealOnAFullDisk(t *testing.T) {
	q := &quota{}
	r := mustOpenOn(t, spec(t.TempDir(), func(s *Spec) { s.Keep = 1 }), q.disk())
	seal(t, r, 10, false)
	for _, room := range []int{0, 5, 12, 200} {
		q.on = false
		dir, err := r.OpenCheckpoint(context.Background(), 20)
		if err != nil {
			t.Fatal(err)
		}
		fillCheckpoint(t, dir, 20)
		q.on, q.left = true, room
		if _, err := r.SealCheckpoint(context.Background(), 20, state(20), false); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("room for %d: %v", room, err)
		}
		if p := latest(t, r); p == nil || p.Step != 10 {
			t.Errorf("room for %d: latest %+v", room, p)
		}
	}
	q.on = false
	if _, err := r.SealCheckpoint(context.Background(), 20, state(20), false); err != nil {
		t.Errorf("once there is room: %v", err)
	}
	if p := latest(t, r); p == nil || p.Step != 20 {
		t.Errorf("latest %+v", p)
	}
}

// Resuming takes back what was recorded after the checkpoint, and keeps the
// rollout batches, which are executed again.
func TestResume(t *testing.T) {
	dir := t.TempDir()
	r := mustOpen(t, spec(dir, nil))
	rows, arrays := sampleRows()
	for step := 1; step <= 4; step++ {
		if err := errors.Join(r.PutRollout(context.Background(), step, nil, sampleGroups()), r.PutLedger(context.Background(), step, rows, arrays)); err != nil {
			t.Fatal(err)
		}
		put(t, r, "step", step, map[string]any{"x": float64(step)})
		put(t, r, "eval", step, nil)
		if step%2 == 0 {
			seal(t, r, step, false)
		}
	}
	if err := os.Remove(filepath.Join(r.checkpointDir(4), "state.json")); err != nil {
		t.Fatal(err)
	}
	mustClose(t, r)
	r = mustOpen(t, spec(dir, nil))
	point, err := r.Resume()
	if err != nil || point == nil || point.Step != 2 {
		t.Fatalf("point %+v (%v)", point, err)
	}
	if got := strings.Count(text(t, r), "\n"); got != 4 || strings.Contains(text(t, r), `"step":3`) {
		t.Errorf("metrics\n%s", text(t, r))
	}
	files := tree(t, dir)
	for name, want := range map[string]bool{
		"ledger/step-000002.parquet": true, "ledger/step-000003.parquet": false, "rollouts/step-000004.safetensors": true,
		"checkpoints/step-000002/state.json": true, "checkpoints/step-000004/": false,
	} {
		if _, got := files[name]; got != want {
			t.Errorf("%s is there: %v, want %v", name, got, want)
		}
	}
	put(t, r, "step", 3, map[string]any{"x": 3.0})
	if !strings.HasSuffix(text(t, r), "{\"kind\":\"step\",\"step\":3,\"x\":3}\n") {
		t.Errorf("metrics\n%s", text(t, r))
	}
}

func TestResumeFromNothing(t *testing.T) {
	dir := t.TempDir()
	r := mustOpen(t, spec(dir, nil))
	put(t, r, "eval", 0, nil)
	put(t, r, "step", 1, nil)
	if err := r.PutRollout(context.Background(), 1, nil, nil); err != nil {
		t.Fatal(err)
	}
	point, err := r.Resume()
	if err != nil || point != nil {
		t.Fatalf("point %+v (%v)", point, err)
	}
	if got := text(t, r); got != "" {
		t.Errorf("metrics %q", got)
	}
	if _, _, err := r.Rollout(context.Background(), 1); err != nil {
		t.Errorf("the rollout batch: %v", err)
	}
}

func TestStepNames(t *testing.T) {
	for step, name := range map[int]string{0: "step-000000", 7: "step-000007", 1234567: "step-1234567"} {
		if got := stepName(step); got != name {
			t.Errorf("%d: %s", step, got)
		}
		if got, ok := parseStep(name+".parquet", ".parquet"); !ok || got != step {
			t.Errorf("%s: %d %v", name, got, ok)
		}
	}
	for _, name := range []string{"", "step-", "step-7", "step-0000007", "step-00000x", "step--00001", "step-000007.partial", "xstep-000007"} {
		if step, ok := parseStep(name, ""); ok {
			t.Errorf("%q is step %d", name, step)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"version":1,"step":3,"pinned":true,"files":[{"path":"state.json","size":2,"sha256":"ab"}]}`))
	f.Add([]byte(`{"version":1,"files":[{"path":"../x","size":-1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseManifest(data)
		if err != nil {
			return
		}
		for _, file := range m.Files {
			inside, err := filepath.Rel("/root", filepath.Join("/root", file.Path))
			if err != nil || inside == ".." || strings.HasPrefix(inside, "../") {
				t.Fatalf("path %q leaves the checkpoint", file.Path)
			}
		}
	})
}
