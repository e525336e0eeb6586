package experiments

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

func TestOpenCreates(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "runs", "one")
	r := mustOpen(t, spec(dir, nil))
	if r.Resumed() || r.Dir() != dir || len(r.Changed()) != 0 {
		t.Errorf("resumed %v, dir %s, changed %v", r.Resumed(), r.Dir(), r.Changed())
	}
	files := tree(t, dir)
	for _, name := range []string{"ledger/", "rollouts/", "checkpoints/", "run.json"} {
		if _, ok := files[name]; !ok {
			t.Errorf("no %s in %v", name, files)
		}
	}
	if files["config.yaml"] != "name: test\n" {
		t.Errorf("config.yaml is %q", files["config.yaml"])
	}
	noLeftovers(t, dir)
}

func TestOpenResumes(t *testing.T) {
	dir := t.TempDir()
	mustClose(t, mustOpen(t, spec(dir, nil)))
	s := spec(dir, set("rollout.servers", "b"))
	set("stages.0.steps", "20")(&s)
	s.Config = []byte("name: again\n")
	r := mustOpen(t, s)
	want := []Difference{{"rollout.servers", ClassPlacement, "a", "b"}, {"stages.0.steps", ClassHorizon, "10", "20"}}
	if !r.Resumed() || !reflect.DeepEqual(r.Changed(), want) {
		t.Errorf("resumed %v, changed %v, want %v", r.Resumed(), r.Changed(), want)
	}
	found, err := readRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(found.Starts) != 2 || !reflect.DeepEqual(found.Starts[1].Changed, want) || found.Starts[1].Program != "v0-test" {
		t.Errorf("starts %+v", found.Starts)
	}
	if got := tree(t, dir)["config.yaml"]; got != "name: again\n" {
		t.Errorf("config.yaml is %q", got)
	}
}

func TestOpenRefusesAnotherIdentity(t *testing.T) {
	dir := t.TempDir()
	mustClose(t, mustOpen(t, spec(dir, nil)))
	before := tree(t, dir)
	s := spec(dir, set("seed", "8"))
	set("rollout.servers", "b")(&s)
	s.Settings = append(s.Settings, Setting{"uadt.rule", ClassIdentity, "c2"})
	_, err := Open(s)
	var mismatch *MismatchError
	if !errors.As(err, &mismatch) {
		t.Fatalf("error %v", err)
	}
	want := []Difference{{"seed", ClassIdentity, "7", "8"}, {"uadt.rule", ClassIdentity, Absent, "c2"}}
	if !reflect.DeepEqual(mismatch.Differences, want) {
		t.Errorf("differences %v, want %v", mismatch.Differences, want)
	}
	for _, part := range []string{dir, "seed is 7 here, 8 in this start", "uadt.rule"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("nothing about %s in %v", part, err)
		}
	}
	sameTree(t, dir, before)
	mustOpen(t, spec(dir, nil)) // the lock was given back
}

func TestCompare(t *testing.T) {
	a := []Setting{{"x", ClassIdentity, "1"}, {"gone", ClassPlacement, "2"}, {"same", ClassHorizon, "3"}}
	b := []Setting{{"same", ClassHorizon, "3"}, {"new", ClassHorizon, "4"}, {"x", ClassPlacement, "5"}}
	want := []Difference{{"new", ClassHorizon, Absent, "4"}, {"x", ClassPlacement, "1", "5"}, {"gone", ClassPlacement, "2", Absent}}
	if got := Compare(a, b); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := Compare(a, a); len(got) != 0 {
		t.Errorf("%v differs from itself", got)
	}
}

func TestFinish(t *testing.T) {
	dir := t.TempDir()
	r := mustOpen(t, spec(dir, nil))
	if err := r.Finish(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, r)
	before := tree(t, dir)
	if _, err := Open(spec(dir, set("rollout.servers", "b"))); !errors.Is(err, ErrComplete) {
		t.Errorf("a complete run: %v", err)
	}
	sameTree(t, dir, before)
	longer := mustOpen(t, spec(dir, set("stages.0.steps", "20")))
	if !longer.Resumed() || longer.record.Complete {
		t.Errorf("a longer horizon: resumed %v, complete %v", longer.Resumed(), longer.record.Complete)
	}
}

func TestFreshStartsBeside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	fresh := func(s *Spec) { s.Fresh = true }
	for _, want := range []string{dir, dir + "-2", dir + "-3"} {
		r := mustOpen(t, spec(dir, fresh))
		if r.Dir() != want || r.Resumed() {
			t.Errorf("fresh start in %s (resumed %v), want %s", r.Dir(), r.Resumed(), want)
		}
	}
}

func TestOpenRefusesForeignDirectories(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := tree(t, dir)
	if _, err := Open(spec(dir, nil)); !errors.Is(err, ErrNotRun) || !strings.Contains(err.Error(), "thesis.tex") {
		t.Errorf("a foreign directory: %v", err)
	}
	sameTree(t, dir, before)
	if _, err := os.Stat(filepath.Join(dir, "lock")); err == nil {
		t.Error("a lock was left in a foreign directory")
	}
	for name, text := range map[string]string{"not JSON": "{", "other version": `{"version":9}`} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "run.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(spec(dir, nil)); err == nil || !strings.Contains(err.Error(), "run.json") {
			t.Errorf("%s: %v", name, err)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(spec(file, nil)); err == nil {
		t.Error("a file was opened as a run directory")
	}
}

// A first start that died before its record may be repeated.
func TestOpenAfterAnEarlyDeath(t *testing.T) {
	dir := t.TempDir()
	mustClose(t, mustOpen(t, spec(dir, nil)))
	if err := os.Remove(filepath.Join(dir, "run.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".writing-run.json-1"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := mustOpen(t, spec(dir, set("seed", "9"))); r.Resumed() {
		t.Error("it counts as resumed")
	}
	noLeftovers(t, dir)
}

func TestOpenRefusesBadSpecs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "never")
	for part, change := range map[string]func(*Spec){
		`class "other"`: func(s *Spec) { s.Settings[0].Class = "other" },
		"given twice":   func(s *Spec) { s.Settings = append(s.Settings, s.Settings[0]) },
		"keep -1":       func(s *Spec) { s.Keep = -1 },
	} {
		if _, err := Open(spec(dir, change)); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("want %q, got %v", part, err)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a directory was made")
	}
}

func TestLockKeepsASecondOut(t *testing.T) {
	dir := t.TempDir()
	r := mustOpen(t, spec(dir, nil))
	_, err := Open(spec(dir, nil))
	var locked *LockedError
	if !errors.As(err, &locked) || locked.Dir != dir || !strings.Contains(locked.Holder, "process") {
		t.Fatalf("a second coordinator: %v", err)
	}
	mustClose(t, r)
	mustOpen(t, spec(dir, nil))
}

// A killed process gives its lock back: the kernel does.
func TestLockOfAKilledProcess(t *testing.T) {
	if dir := os.Getenv("EXPERIMENTS_HOLD_LOCK"); dir != "" {
		mustOpen(t, spec(dir, nil))
		if _, err := os.Stdout.WriteString("locked\n"); err != nil {
			t.Fatal(err)
		}
		select {} // until it is killed
	}
	dir := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run=^TestLockOfAKilledProcess$")
	child.Env = append(os.Environ(), "EXPERIMENTS_HOLD_LOCK="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 7)
	if _, err := out.Read(said); err != nil || !bytes.HasPrefix(said, []byte("locked")) {
		t.Fatalf("child said %q (%v)", said, err)
	}
	var locked *LockedError
	if _, err := Open(spec(dir, nil)); !errors.As(err, &locked) {
		t.Errorf("beside a living process: %v", err)
	}
	if err := child.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); err == nil {
		t.Error("the child ended well")
	}
	if r := mustOpen(t, spec(dir, nil)); !r.Resumed() {
		t.Error("it does not count as resumed")
	}
}

func TestIncarnations(t *testing.T) {
	dir := t.TempDir()
	r := mustOpen(t, spec(dir, nil))
	for e := uint64(1); e <= 3; e++ {
		if last, err := r.LastIncarnation(); err != nil || last != e-1 {
			t.Fatalf("incarnation %d (%v), want %d", last, err, e-1)
		}
		if err := r.RecordIncarnation(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.RecordIncarnation(10); err != nil {
		t.Fatal(err)
	}
	for _, e := range []uint64{0, 3, 10} {
		if err := r.RecordIncarnation(e); err == nil {
			t.Errorf("incarnation %d was recorded after 10", e)
		}
	}
	mustClose(t, r)
	if last, err := mustOpen(t, spec(dir, nil)).LastIncarnation(); err != nil || last != 10 {
		t.Errorf("after a restart: %d (%v)", last, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "incarnation"), []byte("ten"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.RecordIncarnation(11); err == nil || !strings.Contains(err.Error(), "incarnation") {
		t.Errorf("a damaged counter: %v", err)
	}
}

// A disk that fills up while a run is opened leaves the old one as it was.
func TestOpenOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	mustClose(t, mustOpen(t, spec(dir, nil)))
	before := tree(t, dir)
	for _, room := range []int{0, 3, 11, 40} {
		q := &quota{left: room, on: true}
		_, err := open(spec(dir, func(s *Spec) { s.Config = []byte("name: test\n") }), q.disk())
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), dir) {
			t.Errorf("room for %d: %v", room, err)
		}
		sameTree(t, dir, before)
	}
	mustOpen(t, spec(dir, nil))
}
