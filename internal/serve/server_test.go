package serve

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestListenServeAndShutDown(t *testing.T) {
	s, err := New(Options{Dir: newCheckpoint(t, 1)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(context.Background()); err == nil {
		t.Error("Serve without Listen")
	}
	if err := s.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	k := &kit{t: t, server: s}
	k.http = testServerAt(s.URL())
	if r := k.ok("POST", "/v1/chat/completions", ask(textPart("yes"))); len(choicesOf(r)) != 1 {
		t.Errorf("%v", r)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("serve: %v", err)
	}
	if _, _, _, err := k.try(minute(t), "GET", "/health", nil); err == nil {
		t.Error("still answering after shutdown")
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

// A request that is held by a pause does not hold up the shutdown for ever.
func TestShutdownCutsOffWhatDoesNotEnd(t *testing.T) {
	s, err := New(Options{Dir: newCheckpoint(t, 1), ShutdownTimeout: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	k := &kit{t: t, server: s}
	k.http = testServerAt(s.URL())
	k.ok("POST", "/pause", nil)
	held := k.later(minute(t), "POST", "/v1/chat/completions", ask(textPart("yes")))
	k.until("the request to queue", func() bool { return s.engine.Stats().Waiting == 1 })
	cancel()
	if err := <-done; err != nil {
		t.Errorf("serve: %v", err)
	}
	if got := <-held; got.err == nil && got.status == 200 {
		t.Errorf("held request: %+v", got)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

func TestPortInUse(t *testing.T) {
	first, err := New(Options{Dir: newCheckpoint(t, 1)})
	if err != nil {
		t.Fatal(err)
	}
	second, err := New(Options{Dir: newCheckpoint(t, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(first.Close(), second.Close()); err != nil {
			t.Error(err)
		}
	}()
	if err := first.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	address := strings.TrimPrefix(first.URL(), "http://")
	if err := second.Listen(address); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), address) {
		t.Errorf("got %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Options{MaxImages: -1, Workers: -2}); err == nil || !strings.Contains(err.Error(), "workers") ||
		!strings.Contains(err.Error(), "directory is missing") {
		t.Errorf("bad options: %v", err)
	}
	for name, tc := range map[string]struct {
		damage func(dir string) error
		want   string
	}{
		"no directory":      {os.RemoveAll, "no such file"},
		"no tokenizer":      {func(dir string) error { return os.Remove(filepath.Join(dir, "tokenizer.json")) }, "tokenizer.json"},
		"no processor":      {func(dir string) error { return os.Remove(filepath.Join(dir, "preprocessor_config.json")) }, "preprocessor_config.json"},
		"other patches":     {edit("preprocessor_config.json", "patch_size", 7), "patch 7"},
		"other image token": {edit("config.json", "image_token_id", 5), "<|image_pad|>"},
		"larger vocabulary": {edit("config.json", "vocab_size", 400), "embed_tokens"},
		"bad end tokens":    {edit("generation_config.json", "eos_token_id", []int{99999}), "99999"},
		"end token text":    {edit("generation_config.json", "eos_token_id", "x"), "eos_token_id"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newCheckpoint(t, 1)
			if err := tc.damage(dir); err != nil {
				t.Fatal(err)
			}
			if s, err := New(Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
				if s != nil {
					_ = s.Close()
				}
			}
		})
	}
}

// edit returns a function that changes one key of a JSON file.
func edit(file, key string, value any) func(dir string) error {
	return func(dir string) error {
		path := filepath.Join(dir, file)
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var fields map[string]any
		if err := json.Unmarshal(raw, &fields); err != nil {
			return err
		}
		fields[key] = value
		if raw, err = json.Marshal(fields); err != nil {
			return err
		}
		return os.WriteFile(path, raw, 0o600)
	}
}
