package serve

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
)

// answer is a response that arrives later.
type answer struct {
	status int
	raw    []byte
	err    error
}

func (k *kit) later(ctx context.Context, method, path string, body any) chan answer {
	out := make(chan answer, 1)
	go func() {
		status, _, raw, err := k.try(ctx, method, path, body)
		out <- answer{status, raw, err}
	}()
	return out
}

// minute bounds a wait that no test comes near.
func minute(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// until polls the engine's own counters, which move with its steps.
func (k *kit) until(what string, ready func() bool) {
	k.t.Helper()
	ctx := minute(k.t)
	for !ready() {
		if ctx.Err() != nil {
			k.t.Fatalf("waiting for %s: %+v", what, k.server.engine.Stats())
		}
		k.ok("GET", "/health", nil)
	}
}

func TestRequestsWaitWhilePaused(t *testing.T) {
	k := newKit(t, nil)
	for _, mode := range []string{"abort", "wait", "keep"} {
		if r := k.ok("POST", "/pause?mode="+mode, nil); r["status"] != "paused" {
			t.Errorf("%s: %v", mode, r)
		}
		if r := k.ok("GET", "/is_paused", nil); r["is_paused"] != true {
			t.Errorf("%s: %v", mode, r)
		}
		before := k.server.engine.Stats()
		held := k.later(minute(t), "POST", "/v1/chat/completions", ask(textPart("yes")))
		k.until("the request to queue", func() bool { return k.server.engine.Stats().Waiting == 1 })
		if after := k.server.engine.Stats(); after.GenerationTokens != before.GenerationTokens {
			t.Errorf("%s: tokens while paused", mode)
		}
		if r := k.ok("POST", "/resume", nil); r["status"] != "resumed" {
			t.Errorf("%v", r)
		}
		if got := <-held; got.err != nil || got.status != 200 {
			t.Errorf("%s: held request: %d %s %v", mode, got.status, got.raw, got.err)
		}
	}
	if r := k.ok("GET", "/is_paused", nil); r["is_paused"] != false {
		t.Errorf("after resume: %v", r)
	}
}

func TestPauseAbortAnswersWithWhatThereIs(t *testing.T) {
	k := newKit(t, func(o *Options) { o.MaxSequences = 1 })
	// One slot: the second choice is still waiting when the pause comes, however
	// fast the first goes.
	held := k.later(minute(t), "POST", "/v1/chat/completions", with(ask(textPart("yes")), "n", 200, "max_completion_tokens", 900))
	k.until("a token", func() bool { return k.server.engine.Stats().GenerationTokens > 0 })
	k.ok("POST", "/pause", nil)
	got := <-held
	if got.status != 200 || !strings.Contains(string(got.raw), `"finish_reason":"abort"`) {
		t.Errorf("%d %.300s %v", got.status, got.raw, got.err)
	}
	k.ok("POST", "/resume", nil)
}

func TestClientThatLeavesIsForgotten(t *testing.T) {
	k := newKit(t, func(o *Options) { o.MaxSequences = 1 })
	for _, stream := range []bool{false, true} {
		before := k.server.engine.Stats().GenerationTokens
		ctx, cancel := context.WithCancel(minute(t))
		left := k.later(ctx, "POST", "/v1/chat/completions", with(ask(textPart("yes")), "n", 500, "max_completion_tokens", 900, "stream", stream))
		k.until("a token", func() bool { return k.server.engine.Stats().GenerationTokens > before })
		cancel()
		if got := <-left; !errors.Is(got.err, context.Canceled) {
			t.Errorf("stream %v: %v", stream, got.err)
		}
		k.until("the engine to be empty", func() bool {
			s := k.server.engine.Stats()
			return s.Running == 0 && s.Waiting == 0
		})
	}
}

func TestReloadServesNewWeights(t *testing.T) {
	k := newKit(t, nil)
	next := newCheckpoint(t, 2)
	body := ask(imagePart(pngURL(t, 84, 84, 1), "u"), textPart("what?"))
	old := sampled(t, choicesOf(k.ok("POST", "/v1/chat/completions", body))[0])
	fresh := newKit(t, func(o *Options) { o.Dir = next })
	want := sampled(t, choicesOf(fresh.ok("POST", "/v1/chat/completions", body))[0])
	if old == want {
		t.Fatal("two checkpoints answer alike")
	}
	reload := object{"method": "reload_weights", "kwargs": object{"weights_path": next}}
	files, err := checkpoint.Open(next)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := files.Digest()
	if err := errors.Join(err, files.Close()); err != nil {
		t.Fatal(err)
	}
	if got := k.ok("POST", "/collective_rpc", reload)["weights_digest"]; got != digest {
		t.Errorf("loaded %v, want %s", got, digest)
	}
	// No cache was dropped by hand: prompt, image and text are those of before.
	if got := sampled(t, choicesOf(k.ok("POST", "/v1/chat/completions", body))[0]); got != want {
		t.Error("after a bare reload the answer is not that of the new weights")
	}
	k.ok("POST", "/collective_rpc", object{"method": "reload_weights"})
	if got := sampled(t, choicesOf(k.ok("POST", "/v1/chat/completions", body))[0]); got != old {
		t.Error("reloading without a path does not read the first directory again")
	}
}

func TestFailedReloadKeepsTheOldWeights(t *testing.T) {
	k := newKit(t, nil)
	body := ask(textPart("what?"))
	want := sampled(t, choicesOf(k.ok("POST", "/v1/chat/completions", body))[0])
	broken := map[string]func(dir string) error{
		"missing directory": os.RemoveAll,
		"no weights":        func(dir string) error { return os.Remove(filepath.Join(dir, checkpoint.WeightsFile)) },
		"cut short": func(dir string) error {
			return os.Truncate(filepath.Join(dir, checkpoint.WeightsFile), 5000)
		},
		"broken config": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, checkpoint.ConfigFile), []byte(`{"model_type":"qwen2_5_vl"}`), 0o600)
		},
		"other tokenizer": func(dir string) error {
			path := filepath.Join(dir, "tokenizer.json")
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, append(raw, '\n'), 0o600)
		},
	}
	for name, damage := range broken {
		t.Run(name, func(t *testing.T) {
			dir := newCheckpoint(t, 3)
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			status, _, raw := k.send("POST", "/collective_rpc", object{"method": "reload_weights", "kwargs": object{"weights_path": dir}})
			if status != http.StatusInternalServerError || !strings.Contains(string(raw), "the old weights stay loaded") {
				t.Errorf("%d %s", status, raw)
			}
			if got := sampled(t, choicesOf(k.ok("POST", "/v1/chat/completions", body))[0]); got != want {
				t.Error("the answer changed")
			}
		})
	}
}

func TestCacheSaltAndResets(t *testing.T) {
	k := newKit(t, nil)
	cached := func(salt string) float64 {
		r := k.ok("POST", "/v1/chat/completions", with(ask(textPart("what?")), "cache_salt", salt))
		return r["usage"].(object)["prompt_tokens_details"].(object)["cached_tokens"].(float64)
	}
	if a, b, c := cached("one"), cached("one"), cached("two"); a != 0 || b == 0 || c != 0 {
		t.Errorf("cached %v %v %v", a, b, c)
	}
	k.ok("POST", "/reset_prefix_cache", nil)
	if a := cached("one"); a != 0 {
		t.Errorf("after reset %v", a)
	}
	k.ok("POST", "/pause?mode=wait&clear_cache=false", nil)
	k.ok("POST", "/resume", nil)
	if a := cached("one"); a == 0 {
		t.Error("a pause that keeps caches dropped them")
	}
	k.ok("POST", "/pause?mode=wait", nil)
	k.ok("POST", "/resume", nil)
	if a := cached("one"); a != 0 {
		t.Error("a pause did not drop the cache")
	}
}

func TestMetrics(t *testing.T) {
	k := newKit(t, nil)
	k.ok("POST", "/v1/chat/completions", with(ask(imagePart(pngURL(t, 84, 84, 1), ""), textPart("yes")), "n", 2))
	_, _, raw := k.send("GET", "/metrics", nil)
	for _, want := range []string{
		"vllm:generation_tokens_total{engine=\"0\",model_name=\"policy\"} 24\n",
		"vllm:num_requests_running{engine=\"0\",model_name=\"policy\"} 0\n",
		"vllm:num_requests_waiting{engine=\"0\",model_name=\"policy\"} 0\n",
		"vllm:request_success_total{engine=\"0\",model_name=\"policy\",finished_reason=\"length\"} 2\n",
		"vllm:iteration_tokens_total_count{engine=\"0\",model_name=\"policy\"} 12\n",
		"process_start_time_seconds 1700000000\n",
		"vllm:mm_cache_queries_total{engine=\"0\",model_name=\"policy\"} 1\n",
	} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("%q is missing from\n%s", want, raw)
		}
	}
}

func TestUnknownRouteAndMethod(t *testing.T) {
	k := newKit(t, nil)
	if status, _, raw := k.send("GET", "/v1/chat/completions", nil); status != 405 || string(raw) != `{"detail":"Method Not Allowed"}` {
		t.Errorf("%d %s", status, raw)
	}
	if status, _, raw := k.send("POST", "/collective_rpc", "{"); status != 400 {
		t.Errorf("%d %s", status, raw)
	}
	if status, _, raw := k.send("POST", "/pause?clear_cache=maybe", nil); status != 400 {
		t.Errorf("%d %s", status, raw)
	}
}
