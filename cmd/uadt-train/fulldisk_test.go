package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestFullDisk lets a run write files of a few kilobytes only, as a disk does
// that is about to be full, then gives it room: it must end with a named file,
// and resume to the bits of an unbroken run.
func TestFullDisk(t *testing.T) {
	l := lab(t)
	want := outcome(t, l.unbroken(t))
	recipe, runs := writeRecipe(t, l.recipe)
	for _, limit := range []string{"20000", "400000"} {
		r := start(t, []string{fileLimit + "=" + limit}, nil, "--config", recipe).wait(t)
		r.expect(t, exitFailed, runs, syscall.EFBIG.Error())
		requireSealed(t, filepath.Join(runs, "tiny"))
		if testing.Short() {
			return
		}
	}
	invoke(t, "--config", recipe).expect(t, exitDone)
	requireSame(t, outcome(t, filepath.Join(runs, "tiny")), want)
}

// TestFullFileSystem does the same on a real file system that is full, where
// mounting one is allowed.
func TestFullFileSystem(t *testing.T) {
	if testing.Short() {
		t.Skip("TestFullDisk does the same with a limit")
	}
	l := lab(t)
	want := outcome(t, l.unbroken(t))
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=6m"); err != nil {
		t.Skipf("no file system may be mounted here (%v); TestFullDisk has the limit of file sizes", err)
	}
	defer func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	recipe := writeFile(t, filepath.Join(t.TempDir(), "recipe.yaml"), []byte(l.recipe(dir)))
	invoke(t, "--config", recipe).expect(t, exitFailed, dir, syscall.ENOSPC.Error())
	requireSealed(t, filepath.Join(dir, "tiny"))
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=200m"); err != nil {
		t.Fatal(err)
	}
	invoke(t, "--config", recipe).expect(t, exitDone)
	requireSame(t, outcome(t, filepath.Join(dir, "tiny")), want)
}

// requireSealed fails if a checkpoint is there without its manifest.
func requireSealed(t *testing.T, run string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(run, "checkpoints", "step-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range found {
		if strings.HasSuffix(dir, ".partial") {
			continue // its name says so, and no reader takes it
		}
		if _, err := os.Stat(filepath.Join(dir, "manifest.json")); err != nil {
			t.Errorf("half-written checkpoint: %v", err)
		}
	}
}
