package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"image"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBadConfigurations(t *testing.T) {
	l := lab(t)
	for _, c := range []struct {
		name     string
		old, new string // in the recipe
		line     int
		words    []string
	}{
		{"unknown key", "checkpoint: {every: 20}", "chekpoint: {every: 20}", 12, []string{"unknown key chekpoint", "did you mean checkpoint"}},
		{"unknown nested key", "group_size: 4", "gruop_size: 4", 10, []string{"rollout.gruop_size", "did you mean rollout.group_size"}},
		{"unknown key of a stage", "batch: 4", "bach: 4", 7, []string{"bach"}},
		{"wrong type", "group_size: 4", "group_size: many", 10, []string{"rollout.group_size", "many"}},
		{"text for a section", "eval: {", "eval: none #", 11, []string{"eval"}},
		{"one trace", "group_size: 4", "group_size: 1", 10, []string{"rollout.group_size", "1 is outside [2, 1024]"}},
		{"lambda below 0", "eval: {", "uadt: {lambda: -0.1}\neval: {", 11, []string{"uadt.lambda", "-0.1"}},
		{"top_p 0", "max_tokens: 32", "top_p: 0", 10, []string{"rollout.top_p", "0 is outside (0, 1]"}},
		{"clip_low above 1", "eval: {", "grpo: {clip_low: 1.5}\neval: {", 11, []string{"grpo.clip_low", "1.5 is outside [0, 1]"}},
		{"a name that is a path", "name: tiny", "name: ../tiny", 1, []string{"name", "../tiny"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			recipe, runs := writeRecipe(t, func(runs string) string { return strings.Replace(l.recipe(runs), c.old, c.new, 1) })
			place := fmt.Sprintf("%s:%d", recipe, c.line)
			invoke(t, "--config", recipe).expect(t, exitUsage, append(c.words, place)...)
			requireAbsent(t, runs)
		})
	}
	t.Run("all problems at once", func(t *testing.T) {
		recipe, runs := writeRecipe(t, l.recipe)
		invoke(t, "--config", recipe, "--set", "rollout.group_size=1", "--set", "rollout.top_p=0", "--set", "uadt.gamma=2").
			expect(t, exitUsage, "rollout.group_size", "rollout.top_p", "uadt.gamma", "--set")
		requireAbsent(t, runs)
	})
	t.Run("no such file", func(t *testing.T) {
		invoke(t, "--config", "nowhere.yaml").expect(t, exitUsage, "nowhere.yaml")
	})
	t.Run("not YAML", func(t *testing.T) {
		recipe := writeFile(t, filepath.Join(t.TempDir(), "r.yaml"), []byte("name: [\n"))
		invoke(t, "--config", recipe).expect(t, exitUsage, recipe)
	})
}

func requireAbsent(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("%s exists (%v), want nothing written", path, err)
	}
}

func TestBadCommandLines(t *testing.T) {
	for _, c := range []struct {
		args  string
		words []string
	}{
		{"frobnicate", []string{`unknown command "frobnicate"`}},
		{"--no-such-flag", []string{"no-such-flag"}},
		{"--config a --fresh --resume", []string{"fresh", "resume"}},
		{"serve", []string{"--model"}},
		{"infer --model m", []string{"--question"}},
		{"infer --model m --question q --type riddle", []string{"--type riddle"}},
		{"data phantom", []string{"--out"}},
		{"data phantom --out x --size 3", []string{"size is 3"}},
		{"model init", []string{"--out"}},
		{"reward check", []string{"--data", "--predictions"}},
		{"worker --bus nats://127.0.0.1:1", []string{"servers"}},
		{"doctor", []string{"--config"}},
		{"config explain uadt.lamda", []string{"uadt.lambda"}},
	} {
		t.Run(c.args, func(t *testing.T) {
			invoke(t, strings.Fields(c.args)...).expect(t, exitUsage, c.words...)
		})
	}
}

func TestMissingPaths(t *testing.T) {
	l := lab(t)
	for _, c := range []struct{ name, old string }{
		{"model", l.path("model")}, {"stage data", l.path("data/sft.json")}, {"held-out data", l.path("data/in_domain.json")},
	} {
		t.Run(c.name, func(t *testing.T) {
			gone := filepath.Join(t.TempDir(), "gone")
			recipe, runs := writeRecipe(t, func(runs string) string { return strings.Replace(l.recipe(runs), c.old, gone, 1) })
			invoke(t, "--config", recipe).expect(t, exitUsage, gone, "missing")
			invoke(t, "--config", recipe, "--dry-run").expect(t, exitUsage, gone, "missing")
			requireAbsent(t, runs)
		})
	}
}

// bombPNG claims to be 60,000 x 60,000 pixels in a few bytes.
func bombPNG(t *testing.T) []byte {
	t.Helper()
	var small bytes.Buffer
	if err := png.Encode(&small, image.NewGray(image.Rect(0, 0, 1, 1))); err != nil {
		t.Fatal(err)
	}
	data := small.Bytes()
	const header = 8 + 8 // signature, then length and type of IHDR
	binary.BigEndian.PutUint32(data[header:], 60000)
	binary.BigEndian.PutUint32(data[header+4:], 60000)
	binary.BigEndian.PutUint32(data[header+13:], crc32.ChecksumIEEE(data[12:header+13]))
	return data
}

// badImages are images that no one should take, with what is to be said.
func badImages(t *testing.T) map[string][]byte {
	t.Helper()
	var whole bytes.Buffer
	if err := png.Encode(&whole, image.NewRGBA(image.Rect(0, 0, 64, 64))); err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"truncated": whole.Bytes()[:whole.Len()/2], "empty": {}, "bomb": bombPNG(t), "text": []byte("an image of a fundus"),
	}
}

func TestBadImages(t *testing.T) {
	l := lab(t)
	for name, data := range badImages(t) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := writeFile(t, filepath.Join(dir, name+".png"), data)
			r := invoke(t, "infer", "--model", l.path("model"), "--question", "What is it?", "--image", path)
			r.expect(t, exitFailed, path)
			if r.stdout != "" {
				t.Errorf("an answer was printed: %q", r.stdout)
			}
			good := phantomRecords(t, l, 1)
			bad := phantomRecords(t, l, 1)
			bad[0]["image"] = []string{base64.StdEncoding.EncodeToString(data)}
			file := writeRecords(t, dir, append(good, bad...))
			checked := invoke(t, "data", "check", file)
			checked.expect(t, exitFailed, "1 records cannot be taken")
			if !contains(checked.stdout, file, "record 1: ") {
				t.Errorf("data check does not say which record:\n%s", checked.stdout)
			}
			recipe, runs := writeRecipe(t, func(runs string) string {
				return strings.Replace(l.rlOnly(runs), l.path("data/train.json"), file, 1)
			})
			invoke(t, "--config", recipe).expect(t, exitFailed, file, "1 of 2 records are bad", "more than the share 0.01")
			requireNoCheckpoint(t, runs)
		})
	}
}

// requireNoCheckpoint fails if anything was trained, saved or half-saved.
func requireNoCheckpoint(t *testing.T, runs string) {
	t.Helper()
	for _, pattern := range []string{"*/checkpoints/*", "*/ledger/*", "*/rollouts/*"} {
		if found, err := filepath.Glob(filepath.Join(runs, pattern)); err != nil || len(found) > 0 {
			t.Errorf("a refused run wrote %v (%v)", found, err)
		}
	}
}

// phantomRecords are the first n records of the shared RL questions, with their
// images inline.
func phantomRecords(t *testing.T, l *laboratory, n int) []map[string]any {
	t.Helper()
	var records []map[string]any
	if err := json.Unmarshal(readFile(t, l.path("data", "train.json")), &records); err != nil {
		t.Fatal(err)
	}
	for _, r := range records[:n] {
		var inline []string
		for _, path := range r["image"].([]any) {
			inline = append(inline, base64.StdEncoding.EncodeToString(readFile(t, l.path("data", path.(string)))))
		}
		r["image"] = inline
	}
	return records[:n]
}

func writeRecords(t *testing.T, dir string, records []map[string]any) string {
	t.Helper()
	data, err := json.Marshal(records)
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, filepath.Join(dir, "records.json"), data)
}

func TestBrokenRecords(t *testing.T) {
	l := lab(t)
	good, err := json.Marshal(phantomRecords(t, l, 2))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, text string
		words      []string
	}{
		{"cut off", string(good[:len(good)-20]), []string{"record 1"}},
		{"not an array", `{"image": "x"}`, nil},
		{"no conversations", `[{"image": ["x.png"]}]`, []string{"record 0"}},
		{"a number for a text", `[{"image": [], "conversations": [{"from": "human", "value": 7}]}]`, []string{"record 0"}},
		{"not JSON", "\x00\x01\x02", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := writeFile(t, filepath.Join(t.TempDir(), "records.json"), []byte(c.text))
			r := invoke(t, "data", "check", file)
			r.expect(t, exitFailed)
			for _, w := range append(c.words, file) {
				if !strings.Contains(r.stdout+r.stderr, w) {
					t.Errorf("data check does not say %q:\n%s%s", w, r.stdout, r.stderr)
				}
			}
			recipe, runs := writeRecipe(t, func(runs string) string {
				return strings.Replace(l.rlOnly(runs), l.path("data/train.json"), file, 1)
			})
			invoke(t, "--config", recipe).expect(t, exitFailed, file)
			requireNoCheckpoint(t, runs)
		})
	}
}
