package vllm

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// replay serves recorded responses by path.
func replay(t *testing.T, routes map[string]string) *client {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, ok := routes[r.URL.Path]
		if !ok {
			name = "err_wrong_route"
		}
		if text, raw := strings.CutPrefix(name, "raw:"); raw {
			_, _ = w.Write([]byte(text))
			return
		}
		status, body := real(t, name)
		refuse(w, status, string(body))
	}))
	c := newClient(server.URL+"/", Options{Key: "k"}.withDefaults())
	t.Cleanup(func() { c.close(); server.Close() })
	return c
}

func TestProbesOfRealServer(t *testing.T) {
	ctx := context.Background()
	c := replay(t, map[string]string{"/version": "version", "/v1/models": "models_with_lora", "/health": "health", "/is_paused": "is_paused_wait"})
	if v, err := c.version(ctx); err != nil || v != "0.25.1" {
		t.Errorf("version %q, %v", v, err)
	}
	m, err := c.baseModel(ctx, "")
	if err != nil || m.ID != "policy" || m.MaxLength != 1024 {
		t.Errorf("base model %+v, %v", m, err)
	}
	if _, err := c.baseModel(ctx, "other"); err == nil || !strings.Contains(err.Error(), `"policy"`) {
		t.Errorf("a model that is not served: %v", err)
	}
	if err := c.health(ctx); err != nil {
		t.Error(err)
	}
	if paused, known, err := c.paused(ctx); !paused || !known || err != nil {
		t.Errorf("paused %v, known %v, %v", paused, known, err)
	}
	none := replay(t, nil)
	if paused, known, err := none.paused(ctx); paused || known || err != nil {
		t.Errorf("without the route: paused %v, known %v, %v", paused, known, err)
	}
	if _, err := none.version(ctx); err == nil || !strings.Contains(err.Error(), `"Not Found"`) {
		t.Errorf("without the route: %v", err)
	}
}

func TestProbesOfGarbage(t *testing.T) {
	c := replay(t, map[string]string{"/version": "raw:{}", "/v1/models": "raw:[", "/is_paused": "raw:{}", "/metrics": "raw:\x00\xff{"})
	var garbage *GarbageError
	_, versionErr := c.version(context.Background())
	_, modelErr := c.baseModel(context.Background(), "")
	_, _, pausedErr := c.paused(context.Background())
	for name, err := range map[string]error{"version": versionErr, "models": modelErr, "is_paused": pausedErr} {
		if !errors.As(err, &garbage) {
			t.Errorf("%s: error %v, want garbage", name, err)
		}
	}
	if m, err := c.metrics(context.Background()); err != nil || m.known {
		t.Errorf("metrics %+v, %v", m, err)
	}
}

func TestReloadOfRealServer(t *testing.T) {
	routes := map[string]string{"/pause": "pause_wait", "/resume": "resume_wait", "/collective_rpc": "collective_rpc_reload_weights_path",
		"/reset_prefix_cache": "reset_prefix_cache", "/reset_mm_cache": "reset_mm_cache", "/reset_encoder_cache": "reset_encoder_cache"}
	if err := replay(t, routes).reload(context.Background(), offerOf(0)); err != nil {
		t.Error(err)
	}
	var failed *reloadError
	routes["/collective_rpc"] = "collective_rpc_missing_path"
	if err := replay(t, routes).reload(context.Background(), offerOf(0)); !errors.As(err, &failed) || !failed.broken || !strings.Contains(err.Error(), "Repo id") {
		t.Errorf("a path that is missing: %v", err)
	}
	routes["/collective_rpc"] = `raw:{"results":[null],"weights_digest":"d0"}`
	if err := replay(t, routes).reload(context.Background(), offerOf(0)); err != nil {
		t.Errorf("the offered weights: %v", err)
	}
	var other *DigestError
	if err := replay(t, routes).reload(context.Background(), offerOf(1)); !errors.As(err, &failed) || !failed.broken || !errors.As(err, &other) || other.Loaded != "d0" {
		t.Errorf("other weights than offered: %v", err)
	}
	routes["/pause"] = "pause_bogus"
	if err := replay(t, routes).reload(context.Background(), offerOf(0)); !errors.As(err, &failed) || failed.broken {
		t.Errorf("a pause that is refused: %v", err)
	}
}

func TestErrorBodies(t *testing.T) {
	for name, want := range map[string]struct {
		says    string
		refusal bool
	}{
		"err_unknown_model": {"does not exist", false}, "err_prompt_too_long": {"maximum context length", true},
		"err_wrong_route": {"Not Found", false}, "err_top_logprobs_cap": {"greater than max allowed: 20", true}, "err_bad_json": {"", true},
		"collective_rpc_missing_path": {"Repo id", false},
	} {
		status, body := real(t, name)
		err := &StatusError{"s", "/r", status, message(body)}
		if !strings.Contains(err.Error(), want.says) || err.refusal() != want.refusal || err.Message == "" {
			t.Errorf("%s: %v, refusal %v; want %q, %v", name, err, err.refusal(), want.says, want.refusal)
		}
	}
	for body, want := range map[string]string{
		`{"error":"Unauthorized"}`: `"Unauthorized"`, `{"error":null}`: "null", "  plain \n": "plain", "": "", "\xff": "?",
		strings.Repeat("x", 600): strings.Repeat("x", 500) + "...",
	} {
		if got := message([]byte(body)); got != want {
			t.Errorf("message of %q is %q, want %q", body, got, want)
		}
	}
}

const page = `# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="policy}"} 1250.0
vllm:generation_tokens_total{engine="1",model_name="policy"} 2.5e2
vllm:prompt_tokens_total{engine="0"} 100
vllm:iteration_tokens_total_count 7 1700000000
vllm:iteration_tokens_total_sum 99
vllm:num_requests_running{engine="0"} 3
vllm:num_requests_waiting{engine="0"} 4
process_start_time_seconds 1.7e9
vllm:generation_tokens_total{engine="2"} NaN
broken{
empty
`

func TestParseMetrics(t *testing.T) {
	if got, want := parseMetrics([]byte(page)), (metrics{progress: 1607, tokens: 1500, running: 3, known: true, start: 1.7e9}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := parseMetrics(nil); got != (metrics{}) {
		t.Errorf("nothing gives %+v", got)
	}
}

func FuzzParseMetrics(f *testing.F) {
	f.Add([]byte(page))
	f.Add([]byte("vllm:generation_tokens_total"))
	f.Add([]byte("{} 1\n{\n}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m := parseMetrics(data); m.progress != m.progress {
			t.Errorf("progress is NaN for %q", data)
		}
	})
}

func TestOptionsRefused(t *testing.T) {
	_, err := NewFleet(Options{
		Servers: []string{"localhost:8000", "http://a", "http://a"}, Timeout: -time.Second, Concurrency: -1, Quorum: 4, MaxPixels: -4,
	})
	if err == nil {
		t.Fatal("nonsense was accepted")
	}
	for _, want := range []string{`"localhost:8000"`, "listed twice", "timeout is -1s", "concurrency -1", "quorum is 4", "max pixels -4"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not mention %q", err, want)
		}
	}
	if _, err := NewFleet(Options{}); err == nil || !strings.Contains(err.Error(), "no servers") {
		t.Errorf("no servers: %v", err)
	}
}

func TestInspect(t *testing.T) {
	f := newFake(t)
	info, err := Inspect(context.Background(), f.server.URL, Options{})
	want := Info{f.server.URL, "0.0.1", "policy", "x", 65536, true, false, true, nil}
	if err != nil || info != want {
		t.Errorf("%+v, %v; want %+v", info, err, want)
	}
	f.setHook(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.URL.Path == "/is_paused" || r.URL.Path == "/version" {
			refuse(w, 404, "{}")
			return true
		}
		return false
	})
	info, err = Inspect(context.Background(), f.server.URL, Options{Model: "other"})
	if err == nil || info.CanChange || !info.Watched || !strings.Contains(err.Error(), "/version") || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := Inspect(context.Background(), "http://"+freePort(t), Options{}); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody there: %v", err)
	}
	if _, err := Inspect(context.Background(), "nonsense", Options{}); err == nil {
		t.Error("nonsense was accepted")
	}
}
