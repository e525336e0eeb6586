package judge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/rollout"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// endpoint starts a server whose n-th request (from 1) is answered by handle.
func endpoint(t *testing.T, handle func(n int, w http.ResponseWriter, r *http.Request)) (Options, *atomic.Int64) {
	t.Helper()
	var calls atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handle(int(calls.Add(1)), w, r)
	}))
	client := server.Client()
	t.Cleanup(func() { client.CloseIdleConnections(); server.Close() })
	return Options{
		URL: server.URL + "/v1", Model: "grader", Client: client,
		Wait: func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
	}, &calls
}

func say(w io.Writer, content string) {
	text, _ := json.Marshal(content)
	fmt.Fprintf(w, `{"choices":[{"message":{"content":%s}}]}`, text)
}

func mustNew(t *testing.T, o Options) *Judge {
	t.Helper()
	j, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestVerdictAndCache(t *testing.T) {
	o, calls := endpoint(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		var request chatRequest
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil || r.URL.Path != "/v1/chat/completions" {
			t.Errorf("request to %s: %v", r.URL.Path, err)
		}
		if r.Header.Get("Authorization") != "Bearer secret" || request.Model != "grader" || request.Temperature != 0 {
			t.Errorf("request %+v with %q", request, r.Header.Get("Authorization"))
		}
		if strings.Contains(request.Messages[1].Content, `"wet AMD"`) {
			say(w, `{"score": 1}`)
			return
		}
		say(w, `{"score": 0}`)
	})
	o.Key = "secret"
	j := mustNew(t, o)
	for range 3 {
		if v, err := j.Verdict(context.Background(), "q", "neovascular AMD", "wet AMD"); err != nil || v != 1 {
			t.Errorf("verdict %v, %v, want 1", v, err)
		}
		if v, err := j.Verdict(context.Background(), "q", "neovascular AMD", "dry AMD"); err != nil || v != 0 {
			t.Errorf("verdict %v, %v, want 0", v, err)
		}
	}
	if calls.Load() != 2 {
		t.Errorf("%d requests for 2 contents", calls.Load())
	}
}

func TestRetries(t *testing.T) {
	for name, c := range map[string]struct {
		first  int // status of the first two requests
		calls  int64
		failed bool
	}{
		"overload": {429, 3, false}, "server fault": {503, 3, false}, "refused": {400, 1, true}, "unauthorised": {401, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			o, calls := endpoint(t, func(n int, w http.ResponseWriter, _ *http.Request) {
				if n <= 2 {
					http.Error(w, "no", c.first)
					return
				}
				say(w, "```json\n{\"score\": 0.5}\n```")
			})
			v, err := mustNew(t, o).Verdict(context.Background(), "q", "g", "a")
			var status *StatusError
			if failed := errors.As(err, &status) && status.Status == c.first; failed != c.failed || !failed && (err != nil || v != 0.5) {
				t.Errorf("verdict %v, %v", v, err)
			}
			if calls.Load() != c.calls {
				t.Errorf("%d requests, want %d", calls.Load(), c.calls)
			}
		})
	}
}

func TestBackoffDoubles(t *testing.T) {
	o, calls := endpoint(t, func(_ int, w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) })
	var waits []time.Duration
	o.Wait = func(_ context.Context, d time.Duration) error { waits = append(waits, d); return nil }
	if _, err := mustNew(t, o).Verdict(context.Background(), "q", "g", "a"); err == nil || !strings.Contains(err.Error(), "try 4") {
		t.Errorf("error %v, want one of try 4", err)
	}
	if calls.Load() != 4 || fmt.Sprint(waits) != "[500ms 1s 2s]" {
		t.Errorf("%d requests, waits %v", calls.Load(), waits)
	}
	o.Retries = -1
	if _, err := mustNew(t, o).Verdict(context.Background(), "q", "g", "a"); err == nil || calls.Load() != 5 {
		t.Errorf("no retries: %v after %d requests", err, calls.Load())
	}
}

func TestHungEndpointIsBounded(t *testing.T) {
	o, _ := endpoint(t, func(_ int, _ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // so that the server notices the client leaving
		<-r.Context().Done()
	})
	o.Timeout, o.Retries = time.Millisecond, 1
	if _, err := mustNew(t, o).Verdict(context.Background(), "q", "g", "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want a deadline", err)
	}
}

func TestConcurrencyIsBoundedAndShared(t *testing.T) {
	var inFlight, most atomic.Int64
	arrived, release := make(chan struct{}, 100), make(chan struct{})
	o, calls := endpoint(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		if now := inFlight.Add(1); now > most.Load() {
			most.Store(now)
		}
		arrived <- struct{}{}
		<-release
		inFlight.Add(-1)
		say(w, `{"score":1}`)
	})
	o.Concurrency = 2
	j := mustNew(t, o)
	var wait sync.WaitGroup
	for i := range 12 { // 4 contents, each asked for by 3 at once
		wait.Go(func() {
			if _, err := j.Verdict(context.Background(), "q", "g", fmt.Sprint(i%4)); err != nil {
				t.Error(err)
			}
		})
	}
	<-arrived
	<-arrived
	close(release)
	wait.Wait()
	if calls.Load() != 4 || most.Load() != 2 {
		t.Errorf("%d requests, at most %d at once; want 4 and 2", calls.Load(), most.Load())
	}
}

// TestWaiterOutlivesLeader: the caller that asks gives up; the one that waited
// for its verdict asks anew and gets one.
func TestWaiterOutlivesLeader(t *testing.T) {
	arrived := make(chan struct{})
	o, _ := endpoint(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 {
			_, _ = io.Copy(io.Discard, r.Body)
			close(arrived)
			<-r.Context().Done()
			return
		}
		say(w, `{"score":1}`)
	})
	j := mustNew(t, o)
	ctx, cancel := context.WithCancel(context.Background())
	leader := make(chan error)
	go func() {
		_, err := j.Verdict(ctx, "q", "g", "a")
		leader <- err
	}()
	<-arrived
	waiter := make(chan error)
	go func() {
		_, err := j.Verdict(context.Background(), "q", "g", "a")
		waiter <- err
	}()
	cancel()
	if err := <-leader; !errors.Is(err, context.Canceled) {
		t.Errorf("leader: %v", err)
	}
	if err := <-waiter; err != nil {
		t.Errorf("waiter: %v", err)
	}
}

func TestCacheIsBounded(t *testing.T) {
	o, calls := endpoint(t, func(_ int, w http.ResponseWriter, _ *http.Request) { say(w, `{"score":1}`) })
	o.CacheSize = 2
	j := mustNew(t, o)
	for _, a := range []string{"1", "2", "3", "3", "2", "1"} { // the last evicted 1
		if _, err := j.Verdict(context.Background(), "q", "g", a); err != nil {
			t.Fatal(err)
		}
	}
	if calls.Load() != 4 || len(j.cache.done) != 2 || len(j.cache.order) != 2 {
		t.Errorf("%d requests, %d verdicts kept", calls.Load(), len(j.cache.done))
	}
}

func TestPartInAScorer(t *testing.T) {
	o, calls := endpoint(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			say(w, `{"score":1}`)
			return
		}
		say(w, "I would rather not say")
	})
	options := reward.DefaultOptions()
	options.Open, options.Judge = reward.OpenJudge, mustNew(t, o).Part
	scorer, err := reward.New(options)
	if err != nil {
		t.Fatal(err)
	}
	q := rollout.Question{Kind: rollout.Open, Gold: "wet AMD"}
	for i, c := range []struct {
		text             string
		correct, missing bool
		calls            int64
	}{
		{"<think>x</think><answer>leaking vessels</answer>", true, false, 1},
		{"<think>x</think>", false, false, 1},
		{"<think>x</think><answer>something else</answer>", false, true, 2},
	} {
		s, err := scorer.Score(context.Background(), q, rollout.Trace{Text: c.text})
		if err != nil || s.Correct != c.correct || s.Missing != c.missing || calls.Load() != c.calls {
			t.Errorf("case %d: %+v, %v after %d requests", i, s, err, calls.Load())
		}
	}
	part, err := mustNew(t, o).Part(context.Background(), q, rollout.Trace{Text: "nothing"})
	if err != nil || part.Value != 0 || part.Reason != reward.CodeNoAnswer {
		t.Errorf("no answer: %+v, %v", part, err)
	}
}

func TestOptionsRefused(t *testing.T) {
	_, err := New(Options{URL: "ftp://x", Timeout: -1})
	if err == nil {
		t.Fatal("nonsense was accepted")
	}
	for _, want := range []string{"ftp://x", "model is empty", "timeout -1ns"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not mention %q", err, want)
		}
	}
}

func TestWaitTimer(t *testing.T) {
	if err := waitTimer(context.Background(), 1); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := waitTimer(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestConnectionRefused(t *testing.T) {
	o, _ := endpoint(t, func(int, http.ResponseWriter, *http.Request) {})
	o.URL = "http://127.0.0.1:1/v1"
	if _, err := mustNew(t, o).Verdict(context.Background(), "q", "g", "a"); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("error %v", err)
	}
}

func FuzzParseReply(f *testing.F) {
	for _, seed := range []string{`{"choices":[{"message":{"content":"{\"score\": 1}"}}]}`, `{"choices":[]}`, `{`, `null`,
		`{"choices":[{"message":{"content":"{\"score\": 2}"}}]}`, `{"choices":[{"message":{"content":"{\"score\": \"1\"}"}}]}`,
		`{"choices":[{"message":{"content":"{\"score\""}}]}`, `{"choices":[{"message":{"content":null}}]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := parseReply(data)
		if err == nil && !(v >= 0 && v <= 1) {
			t.Errorf("verdict %v of %q", v, data)
		}
		var verdict *VerdictError
		if err != nil && !errors.As(err, &verdict) {
			t.Errorf("error %v is no verdict error", err)
		}
	})
}
