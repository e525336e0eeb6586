package experiments

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/rollout"
)

func TestRolloutComesBackAsItWas(t *testing.T) {
	r := mustOpen(t, spec(t.TempDir(), nil))
	for name, groups := range map[string][]rollout.Group{"two groups": sampleGroups(), "none": {}, "a group without traces": {{Job: "x"}}} {
		meta := []byte(`{"cursor":"` + name + `"}`)
		if err := r.PutRollout(context.Background(), 3, meta, groups); err != nil {
			t.Fatal(err)
		}
		gotMeta, got, err := r.Rollout(context.Background(), 3)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(gotMeta, meta) || !reflect.DeepEqual(got, groups) {
			t.Errorf("%s: %s %+v, want %s %+v", name, gotMeta, got, meta, groups)
		}
	}
	noLeftovers(t, r.Dir())
}

func TestRolloutOfAnyGroups(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
	drawTrace := func(t *rapid.T) rollout.Trace {
		n := rapid.IntRange(0, 5).Draw(t, "tokens")
		x := rollout.Trace{Text: text.Draw(t, "text"), Finish: rollout.Finish(rapid.IntRange(0, 2).Draw(t, "finish"))}
		if rapid.Bool().Draw(t, "has tokens") {
			x.Tokens = rapid.SliceOfN(rapid.Int32(), n, n).Draw(t, "ids")
		} else {
			n = 0
		}
		if rapid.Bool().Draw(t, "has logprobs") {
			x.Logprobs = rapid.SliceOfN(rapid.Float32Range(-9, 0), n, n).Draw(t, "logprobs")
		}
		if rapid.Bool().Draw(t, "has entropies") {
			x.TopKEntropy = rapid.SliceOfN(rapid.Float32Range(0, 9), n, n).Draw(t, "entropies")
		}
		return x
	}
	rapid.Check(t, func(t *rapid.T) {
		var groups []rollout.Group
		for q := range rapid.IntRange(0, 4).Draw(t, "groups") {
			g := rollout.Group{Job: rollout.JobID(fmt.Sprint(q)), Seed: rapid.Int64().Draw(t, "seed")}
			if rapid.Bool().Draw(t, "has prompt") {
				g.PromptTokens = rapid.SliceOfN(rapid.Int32(), 0, 4).Draw(t, "prompt")
			}
			for range rapid.IntRange(0, 4).Draw(t, "traces") {
				g.Traces = append(g.Traces, drawTrace(t))
			}
			groups = append(groups, g)
		}
		file, err := encodeRollout([]byte("meta"), groups)
		if err != nil {
			t.Fatalf("encode: %v", err)
		}
		data, err := safetensors.Encode(file)
		if err != nil {
			t.Fatalf("encode: %v", err)
		}
		_, got, err := decodeRollout(data)
		if err != nil {
			t.Fatalf("decode: %v", err)
		}
		if len(got) != len(groups) || len(groups) > 0 && !reflect.DeepEqual(got, groups) {
			t.Fatalf("%+v, want %+v", got, groups)
		}
	})
}

func TestRolloutThatIsNotThere(t *testing.T) {
	r := mustOpen(t, spec(t.TempDir(), nil))
	if _, _, err := r.Rollout(context.Background(), 5); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := r.Rollout(ended, 5); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if err := r.PutRollout(ended, 5, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestRolloutRefusesTracesThatDoNotFit(t *testing.T) {
	r := mustOpen(t, spec(t.TempDir(), nil))
	for _, change := range []func(*rollout.Trace){
		func(x *rollout.Trace) { x.Logprobs = x.Logprobs[:1] },
		func(x *rollout.Trace) { x.TopKEntropy = append(x.TopKEntropy, 1) },
	} {
		groups := sampleGroups()
		change(&groups[0].Traces[0])
		if err := r.PutRollout(context.Background(), 5, nil, groups); err == nil || !strings.Contains(err.Error(), "rl-0-0") {
			t.Errorf("error %v", err)
		}
	}
	if _, _, err := r.Rollout(context.Background(), 5); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was written: %v", err)
	}
}

// A full disk leaves the batch that was there, at whatever byte it fills up.
func TestRolloutOnAFullDisk(t *testing.T) {
	q := &quota{}
	r := mustOpenOn(t, spec(t.TempDir(), nil), q.disk())
	if err := r.PutRollout(context.Background(), 3, []byte("old"), sampleGroups()); err != nil {
		t.Fatal(err)
	}
	before := tree(t, r.Dir())
	size := len(before["rollouts/step-000003.safetensors"])
	q.on = true
	for _, room := range []int{0, 1, size / 2, size - 1} {
		q.left = room
		if err := r.PutRollout(context.Background(), 3, []byte("new"), sampleGroups()); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("room for %d of %d: %v", room, size, err)
		}
		sameTree(t, r.Dir(), before)
	}
}

func TestRolloutThatIsDamaged(t *testing.T) {
	r := mustOpen(t, spec(t.TempDir(), nil))
	if err := r.PutRollout(context.Background(), 3, []byte("meta"), sampleGroups()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(r.rolloutPath(3))
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{0, 7, 100, len(whole) / 2, len(whole) - 1} {
		if err := os.WriteFile(r.rolloutPath(3), whole[:cut], 0o644); err != nil {
			t.Fatal(err)
		}
		_, _, err := r.Rollout(context.Background(), 3)
		if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "step-000003") {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
}

// Each column that does not fit the others is refused.
func TestRolloutColumnsMustFit(t *testing.T) {
	vector := func(v ...int64) safetensors.Tensor { return safetensors.FromInt64(v) }
	for name, change := range map[string]func(map[string]safetensors.Tensor){
		"no tokens":          func(m map[string]safetensors.Tensor) { delete(m, tensorTokens) },
		"tokens of floats":   func(m map[string]safetensors.Tensor) { m[tensorTokens] = safetensors.FromFloat32([]float32{1}) },
		"a matrix":           func(m map[string]safetensors.Tensor) { m[tensorFinish] = safetensors.FromBytes([]byte{0}, 1, 1) },
		"offsets too few":    func(m map[string]safetensors.Tensor) { m[tensorOffsets] = vector(0, 5) },
		"offsets from 1":     func(m map[string]safetensors.Tensor) { m[tensorOffsets] = vector(1, 2, 3, 3, 5, 5) },
		"offsets that fall":  func(m map[string]safetensors.Tensor) { m[tensorOffsets] = vector(0, 3, 2, 3, 5, 5) },
		"offsets beyond":     func(m map[string]safetensors.Tensor) { m[tensorOffsets] = vector(0, 2, 3, 3, 5, 9) },
		"prompts beyond":     func(m map[string]safetensors.Tensor) { m[tensorPrompt] = vector(0, 9, 9) },
		"finish unknown":     func(m map[string]safetensors.Tensor) { m[tensorFinish].Data[1] = 3 },
		"finish too few":     func(m map[string]safetensors.Tensor) { m[tensorFinish] = safetensors.FromBytes([]byte{0}) },
		"logprobs too few":   func(m map[string]safetensors.Tensor) { m[tensorLogprobs] = safetensors.FromFloat32([]float32{1}) },
		"logprobs too many":  func(m map[string]safetensors.Tensor) { m[tensorLogprobs] = safetensors.FromFloat32(make([]float32, 9)) },
		"entropies too few":  func(m map[string]safetensors.Tensor) { m[tensorTopK] = safetensors.FromFloat32([]float32{1}) },
		"documents not JSON": func(m map[string]safetensors.Tensor) { m[tensorGroups] = safetensors.FromBytes([]byte("[")) },
	} {
		file, err := encodeRollout(nil, sampleGroups())
		if err != nil {
			t.Fatal(err)
		}
		change(file.Tensors)
		data, err := safetensors.Encode(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := decodeRollout(data); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func FuzzDecodeRollout(f *testing.F) {
	for _, groups := range [][]rollout.Group{sampleGroups(), {}, {{Job: "x"}}} {
		file, err := encodeRollout([]byte("meta"), groups)
		if err != nil {
			f.Fatal(err)
		}
		data, err := safetensors.Encode(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, groups, err := decodeRollout(data)
		if err != nil {
			return
		}
		// Whatever was accepted can be written and says the same again.
		file, err := encodeRollout(nil, groups)
		if err != nil {
			t.Fatalf("accepted but not writable: %v", err)
		}
		again, err := safetensors.Encode(file)
		if err != nil {
			t.Fatalf("accepted but not writable: %v", err)
		}
		if _, got, err := decodeRollout(again); err != nil || len(got) != len(groups) {
			t.Fatalf("written but not readable: %v", err)
		}
	})
}
