package checkpoint_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// lazyContents is contents(from) with weights that are read when written.
func lazyContents(from float32) checkpoint.Contents {
	c := contents(from)
	c.Lazy = map[string]safetensors.Lazy{}
	for name, t := range c.Tensors {
		c.Lazy[name] = safetensors.Lazy{DType: t.DType, Shape: t.Shape, Read: func() ([]byte, error) { return t.Data, nil }}
	}
	c.Tensors = nil
	return c
}

func TestLazyWeightsAreTheSame(t *testing.T) {
	for _, shard := range []int64{0, 60} {
		c, l := contents(1), lazyContents(1)
		c.ShardBytes, l.ShardBytes = shard, shard
		dirs := [2]string{filepath.Join(t.TempDir(), "m"), filepath.Join(t.TempDir(), "m")}
		want, got := write(t, dirs[0], c), write(t, dirs[1], l)
		if got != want {
			t.Errorf("digest %s, want %s", got, want)
		}
		entries, err := os.ReadDir(dirs[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			a, errA := os.ReadFile(filepath.Join(dirs[0], e.Name()))
			b, errB := os.ReadFile(filepath.Join(dirs[1], e.Name()))
			if string(a) != string(b) || errA != nil || errB != nil {
				t.Errorf("%s differs (%v, %v)", e.Name(), errA, errB)
			}
		}
	}
}

func TestLazyFailureLeavesNothing(t *testing.T) {
	broken := errors.New("broken")
	c := lazyContents(1)
	x := c.Lazy["model.norm.weight"]
	x.Read = func() ([]byte, error) { return nil, broken }
	c.Lazy["model.norm.weight"] = x
	parent := t.TempDir()
	if _, err := checkpoint.Write(filepath.Join(parent, "m"), c); !errors.Is(err, broken) {
		t.Errorf("error is %v", err)
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v (%v)", entries, err)
	}
}

func TestLazyNeedsAConfig(t *testing.T) {
	c := lazyContents(1)
	delete(c.Files, "config.json")
	if _, err := checkpoint.Write(filepath.Join(t.TempDir(), "m"), c); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
}
