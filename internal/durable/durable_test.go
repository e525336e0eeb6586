package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/durable"
)

// only fails t unless dir holds exactly the named files.
func only(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(names) {
		t.Fatalf("%s holds %v, want %v", dir, got, names)
	}
}

func TestWriteReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.json")
	for _, data := range [][]byte{[]byte("one"), nil, bytes.Repeat([]byte("two"), 1<<20)} {
		if err := durable.WriteBytes(path, data); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes (%v), want %d", len(got), err, len(data))
		}
		only(t, dir, "state.json")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Fatalf("mode %v (%v), want 0644", info.Mode(), err)
	}
}

// While the new file is being written, and when that fails, readers see the old.
func TestFailureKeepsTheOldFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "weights")
	if err := durable.WriteBytes(path, []byte("old")); err != nil {
		t.Fatal(err)
	}
	full := errors.New("disk is full")
	err := durable.Write(path, func(w io.Writer) error {
		if _, err := w.Write(bytes.Repeat([]byte("new"), 1<<20)); err != nil {
			return err
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
			t.Errorf("a reader meanwhile sees %d bytes (%v)", len(got), err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 2 || !durable.Unfinished(entries[0].Name()) || entries[0].Name()[0] != '.' {
			t.Errorf("the directory holds %v (%v), want a hidden unfinished file first", entries, err)
		}
		return full
	})
	if !errors.Is(err, full) || !strings.Contains(err.Error(), path) {
		t.Fatalf("got %v, want the failure and the path", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
		t.Fatalf("%q, %v", got, err)
	}
	only(t, dir, "weights")
	if durable.Unfinished("weights") {
		t.Fatal("a finished file counts as unfinished")
	}
}

func TestWhereNothingCanBeWritten(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing", "file")
	if err := durable.WriteBytes(missing, nil); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("got %v", err)
	}
	if err := durable.SyncDir(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	// A directory cannot be replaced by a file: the temporary one goes.
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteBytes(filepath.Join(dir, "taken"), []byte("x")); err == nil {
		t.Error("a directory was replaced")
	}
	only(t, dir, "taken")
}

func TestWriteInTheWorkingDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := durable.WriteBytes("plain", []byte("x")); err != nil {
		t.Fatal(err)
	}
	only(t, ".", "plain")
}
