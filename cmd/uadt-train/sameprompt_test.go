package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/serve"
	"github.com/uadt-train/uadt-train/rollout"
)

// serveOther serves dir by its own pixel budget, whatever a request says, and
// reads old as new.
func serveOther(t *testing.T, dir, old, new string) string {
	t.Helper()
	server, err := serve.New(serve.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	handler := server.Handler()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		data, err := io.ReadAll(r.Body)
		if err == nil && json.Unmarshal(data, &body) == nil {
			delete(body, "mm_processor_kwargs")
			if data, err = json.Marshal(body); err == nil {
				data = bytes.ReplaceAll(data, []byte(old), []byte(new))
				r.ContentLength = int64(len(data))
			}
		}
		r.Body = io.NopCloser(bytes.NewReader(data))
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		front.Close()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return front.URL
}

// edit changes a JSON file of a model directory.
func edit(t *testing.T, path string, change func(map[string]any)) {
	t.Helper()
	var all map[string]any
	if err := json.Unmarshal(readFile(t, path), &all); err != nil {
		t.Fatal(err)
	}
	change(all)
	data, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, data)
}

// A server of another tokenizer or pixel budget samples from other prompts than
// are trained: nothing of it is trained, and the run says why.
func TestServersThatReadPromptsOtherwise(t *testing.T) {
	l := lab(t)
	swap := func(t *testing.T, dir string) {
		edit(t, filepath.Join(dir, "tokenizer.json"), func(all map[string]any) {
			words := all["model"].(map[string]any)["vocab"].(map[string]any)
			words["s"], words["e"] = words["e"], words["s"]
		})
	}
	enlarge := func(t *testing.T, dir string) {
		edit(t, filepath.Join(dir, "preprocessor_config.json"), func(all map[string]any) { all["min_pixels"] = 12544 })
	}
	nothing := func(*testing.T, string) {}
	for name, c := range map[string]struct {
		change   func(t *testing.T, dir string)
		old, new string
		code     int
		words    []string
	}{
		"the same":             {nothing, "then", "then", exitDone, nil},
		"another template":     {nothing, "Think, then", "Think. Then", exitFailed, []string{"reason=encoding", "of the prompt is", "is not that of model.path", "encoding:6"}},
		"another pixel budget": {enlarge, "then", "then", exitFailed, []string{"reason=encoding", "is not that of model.path", "encoding:6"}},
		"another tokenizer":    {swap, "then", "then", exitUnreachable, []string{"is not the tokenizer that this server was started with"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyModel(t, l)
			c.change(t, dir)
			recipe, runs := writeRecipe(t, func(runs string) string {
				return strings.Replace(l.rlOnly(runs), "timeout: 2s", "timeout: 60s, max_refill: 2", 1)
			})
			r := invoke(t, "--config", recipe, "--set", "rollout.servers=["+serveOther(t, dir, c.old, c.new)+"]")
			r.expect(t, c.code, c.words...)
			if c.code != exitDone {
				requireNoCheckpoint(t, runs)
			}
		})
	}
}

func TestComparePrompts(t *testing.T) {
	if err := comparePrompts([]int32{1, 2}, []int32{1, 2}); err != nil {
		t.Error(err)
	}
	for word, theirs := range map[string][]int32{"token 1 of the prompt is 3 to it and 2 to us": {1, 3}, "1 tokens to it and 2 to us": {1}, "3 tokens to it": {1, 2, 3}} {
		if err := comparePrompts(theirs, []int32{1, 2}); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v: %v, want %q", theirs, err, word)
		}
	}
}

// scripted is a fleet, and an encoder, that give what they are told.
type scripted struct {
	rollout.Fleet
	group rollout.Group
	err   error
}

func (s scripted) Sample(context.Context, rollout.Job) (rollout.Group, error) { return s.group, s.err }

func (s scripted) Prompt(context.Context, []rollout.Message) ([]int32, error) {
	return s.group.PromptTokens, s.err
}

func TestSamePromptsPassesErrorsOn(t *testing.T) {
	away := errors.New("away")
	group := scripted{group: rollout.Group{Server: "s", PromptTokens: []int32{1}}}
	var dropped *rollout.Dropped
	if _, err := (samePrompts{scripted{err: away}, group}).Sample(context.Background(), rollout.Job{}); !errors.Is(err, away) || errors.As(err, &dropped) {
		t.Errorf("an error of the fleet becomes %v", err)
	}
	if _, err := (samePrompts{group, scripted{err: away}}).Sample(context.Background(), rollout.Job{}); !errors.As(err, &dropped) || dropped.Reason != rollout.ReasonEncoding {
		t.Errorf("a prompt that cannot be encoded: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := (samePrompts{group, scripted{err: away}}).Sample(ctx, rollout.Job{}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}
