package vllm

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

// patience bounds what must happen in a test; no test passes by reaching it.
const patience = time.Minute

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until the fleet's state satisfies what.
func eventually(t *testing.T, f *Fleet, what string, holds func() bool) {
	t.Helper()
	err := f.await(bounded(t), func(time.Time) verdict { return verdict{done: holds()} })
	if err != nil {
		t.Fatalf("%s: %v; %+v", what, err, f.Servers())
	}
}

func adoptVersion(t *testing.T, f *Fleet, version int) rollout.Policy {
	t.Helper()
	if _, err := f.Adopt(bounded(t), offerOf(version)); err != nil {
		t.Fatalf("adopting version %d: %v", version, err)
	}
	return offerOf(version).Policy
}

func wantDrop(t *testing.T, err error, reason rollout.Reason, says string) {
	t.Helper()
	var dropped *rollout.Dropped
	if !errors.As(err, &dropped) || dropped.Reason != reason || !strings.Contains(err.Error(), says) {
		t.Errorf("error %v, want a drop for %s that says %q", err, reason, says)
	}
}

// onChat answers chat completions by handle, except the canary's.
func onChat(handle func(w http.ResponseWriter, r *http.Request)) func(http.ResponseWriter, *http.Request, []byte) bool {
	return func(w http.ResponseWriter, r *http.Request, body []byte) bool {
		if r.URL.Path != "/v1/chat/completions" || bytes.Contains(body, []byte("Is this an eye?")) {
			return false
		}
		handle(w, r)
		return true
	}
}

// album is a source of one image.
type album struct{ data []byte }

func (a album) Image(_ context.Context, digest string) ([]byte, string, error) {
	if digest != "abc" {
		return nil, "", fmt.Errorf("no image %s", digest)
	}
	return a.data, "image/png", nil
}

// TestRequest looks at every field of a request: none that decides what is
// sampled may be left to the server.
func TestRequest(t *testing.T) {
	f := newFake(t)
	fleet := fleetOn(t, func(o *Options) { o.Images, o.MaxPixels = album{[]byte("png")}, 4000 }, f)
	policy := adoptVersion(t, fleet, 0)
	job := jobOf("j1", policy)
	job.Question.Messages[1].Parts = append(job.Question.Messages[1].Parts, rollout.Part{Image: &rollout.Image{Digest: "abc", MediaType: "image/png"}})
	job.Sampling = rollout.Sampling{Traces: 2, Temperature: 0.7, TopP: 0.9, TopK: 5, MinP: 0.1, MaxTokens: 30, Seed: 7168, TopLogprobs: 4, Banned: []int32{11, 12}}
	if _, err := fleet.Sample(bounded(t), job); err != nil {
		t.Fatal(err)
	}
	got := f.requests[len(f.requests)-1]
	url := "data:image/png;base64," + base64.StdEncoding.EncodeToString([]byte("png"))
	want := map[string]any{
		"model": "policy", "n": 2.0, "seed": 7168.0, "temperature": 0.7, "top_p": 0.9, "top_k": 5.0, "min_p": 0.1,
		"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
		"max_completion_tokens": 30.0, "min_tokens": 0.0, "stop": []any{}, "stop_token_ids": []any{}, "ignore_eos": false,
		"logit_bias": map[string]any{"11": -100.0, "12": -100.0}, "logprobs": true, "top_logprobs": 5.0,
		"return_token_ids": true, "skip_special_tokens": true, "add_generation_prompt": true, "stream": false,
		"cache_salt": policy.String(), "request_id": "j1-0",
		"mm_processor_kwargs": map[string]any{"max_pixels": 4000.0},
		"messages": []any{
			map[string]any{"role": "system", "content": "You are a \"professional\".\n"},
			map[string]any{"role": "user", "content": []any{
				map[string]any{"type": "text", "text": "What is j1?"},
				map[string]any{"type": "image_url", "image_url": map[string]any{"url": url}, "uuid": "abc"},
			}},
		},
	}
	for key := range want {
		if !reflect.DeepEqual(got[key], want[key]) {
			t.Errorf("%s is %v, want %v", key, got[key], want[key])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d fields, want %d: %v", len(got), len(want), got)
	}
}

func TestImageThatIsMissing(t *testing.T) {
	f := newFake(t)
	fleet := fleetOn(t, func(o *Options) { o.Images = album{} }, f)
	job := jobOf("j1", adoptVersion(t, fleet, 0))
	job.Question.Messages[1].Parts = append(job.Question.Messages[1].Parts, rollout.Part{Image: &rollout.Image{Digest: "unknown"}})
	_, err := fleet.Sample(bounded(t), job)
	wantDrop(t, err, rollout.ReasonUnavailable, "no image unknown")
	bare := fleetOn(t, nil, newFake(t))
	job.Policy = adoptVersion(t, bare, 0)
	_, err = bare.Sample(bounded(t), job)
	wantDrop(t, err, rollout.ReasonUnavailable, "no source of images")
	if s := fleet.Servers()[0]; s.Failed != 0 || s.State != StateHealthy {
		t.Errorf("the server was blamed: %+v", s)
	}
}

// TestRetriedElsewhere: whatever one server does wrong, the job is answered by
// the other, once.
func TestRetriedElsewhere(t *testing.T) {
	for name, fault := range map[string]func(w http.ResponseWriter, r *http.Request){
		"server error": func(w http.ResponseWriter, _ *http.Request) { refuse(w, 500, `{"error":{"message":"EngineDead"}}`) },
		"unavailable":  func(w http.ResponseWriter, _ *http.Request) { refuse(w, 503, "busy") },
		"overload":     func(w http.ResponseWriter, _ *http.Request) { refuse(w, 429, "") },
		"unknown model": func(w http.ResponseWriter, _ *http.Request) {
			status, body := real(t, "err_unknown_model")
			refuse(w, status, string(body))
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"garbage":  func(w http.ResponseWriter, _ *http.Request) { refuse(w, 200, "<html>") },
		"another's answer": func(w http.ResponseWriter, _ *http.Request) {
			_, body := real(t, "chat_finish_stop_biased") // two choices, three were asked for
			refuse(w, 200, string(body))
		},
		"too long a trace": func(w http.ResponseWriter, _ *http.Request) {
			text, _ := fakeChoice("x", fakeRequest{Max: 1000, Seed: 5}, 0)
			refuse(w, 200, `{"prompt_token_ids":[1],"choices":[`+strings.Repeat(text+",", 2)+text+`]}`)
		},
		"cut off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, `{"choices":[`)
		},
		"connection lost": func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			conn.Close()
		},
		"too big": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "999999999") },
		"too big, length unknown": func(w http.ResponseWriter, _ *http.Request) {
			for range 1 << 10 {
				fmt.Fprint(w, strings.Repeat(" ", 1<<10))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bad, good := newFake(t), newFake(t)
			fleet := fleetOn(t, func(o *Options) { o.MaxBody = 1 << 18 }, bad, good)
			policy := adoptVersion(t, fleet, 0)
			bad.setHook(onChat(fault))
			group, err := fleet.Sample(bounded(t), jobOf("j1", policy))
			if err != nil || group.Server != good.server.URL {
				t.Fatalf("answered by %q: %v", group.Server, err)
			}
			if s := fleet.Servers()[0]; s.Failed != 1 {
				t.Errorf("the first server failed %d jobs, want 1: %+v", s.Failed, s)
			}
		})
	}
}

// TestGivenUp: when every try fails, the drop says why the last one did.
func TestGivenUp(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		reason rollout.Reason
		calls  int64
	}{
		"refused":     {400, `{"error":{"message":"too long (parameter=input_tokens)"}}`, rollout.ReasonRefused, 1},
		"bad media":   {422, `{"error":"not an image"}`, rollout.ReasonRefused, 1},
		"unavailable": {500, `{"error":{"message":"boom"}}`, rollout.ReasonUnavailable, 3},
		"garbage":     {200, `{"choices":[]}`, rollout.ReasonGarbage, 3},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			fleet := fleetOn(t, func(o *Options) { o.Retries = 2 }, f)
			policy := adoptVersion(t, fleet, 0)
			var calls atomic.Int64
			f.setHook(onChat(func(w http.ResponseWriter, _ *http.Request) { calls.Add(1); refuse(w, c.status, c.body) }))
			_, err := fleet.Sample(bounded(t), jobOf("j1", policy))
			wantDrop(t, err, c.reason, f.server.URL)
			if calls.Load() != c.calls {
				t.Errorf("%d requests, want %d", calls.Load(), c.calls)
			}
			f.setHook(nil)
			if _, err := fleet.Sample(bounded(t), jobOf("j2", policy)); err != nil {
				t.Errorf("the fleet did not recover: %v", err)
			}
		})
	}
}

func TestAbortedAndEmpty(t *testing.T) {
	f := newFake(t)
	fleet := fleetOn(t, nil, f)
	job := jobOf("j1", adoptVersion(t, fleet, 0))
	job.Sampling.Traces, job.Sampling.MaxTokens = 4, 900
	f.setHook(onChat(func(w http.ResponseWriter, _ *http.Request) {
		status, body := real(t, "chat_during_pause_abort")
		refuse(w, status, string(body))
	}))
	_, err := fleet.Sample(bounded(t), job)
	wantDrop(t, err, rollout.ReasonAborted, "trace 0")
	f.setHook(onChat(func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, 200, `{"prompt_token_ids":[1],"choices":[{"index":0,"finish_reason":"stop","token_ids":[],"logprobs":{"content":[]}}]}`)
	}))
	job.Sampling.Traces = 1
	_, err = fleet.Sample(bounded(t), job)
	wantDrop(t, err, rollout.ReasonEmpty, "trace 0")
	for name, change := range map[string]func(*rollout.Job){
		"no traces":   func(j *rollout.Job) { j.Sampling.Traces = 0 },
		"no tokens":   func(j *rollout.Job) { j.Sampling.MaxTokens = 0 },
		"no messages": func(j *rollout.Job) { j.Question.Messages = nil },
	} {
		bad := jobOf("j2", job.Policy)
		change(&bad)
		if _, err := fleet.Sample(bounded(t), bad); err == nil {
			t.Errorf("%s: accepted", name)
		} else {
			wantDrop(t, err, rollout.ReasonRefused, "")
		}
	}
}

// TestBalance: jobs that are held spread evenly, never more than the bound on
// one server, and the rest wait.
func TestBalance(t *testing.T) {
	const servers, bound, jobs = 3, 2, 9
	var inFlight, most [servers]atomic.Int64
	arrived, release := make(chan struct{}, jobs), make(chan struct{})
	var fakes []*fake
	for range servers {
		fakes = append(fakes, newFake(t))
	}
	fleet := fleetOn(t, func(o *Options) { o.Concurrency = bound }, fakes...)
	policy := adoptVersion(t, fleet, 0)
	for i, f := range fakes {
		f.setHook(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
			if r.URL.Path == "/v1/chat/completions" {
				most[i].Store(max(most[i].Load(), inFlight[i].Add(1)))
				arrived <- struct{}{}
				<-release
				inFlight[i].Add(-1)
			}
			return false
		})
	}
	var wait sync.WaitGroup
	for i := range jobs {
		wait.Go(func() {
			if _, err := fleet.Sample(bounded(t), jobOf(fmt.Sprint("j", i), policy)); err != nil {
				t.Error(err)
			}
		})
	}
	for range servers * bound {
		<-arrived
	}
	for i := range most {
		if n := inFlight[i].Load(); n != bound {
			t.Errorf("server %d has %d jobs, want %d", i, n, bound)
		}
	}
	close(release)
	wait.Wait()
	served := 0
	for i, s := range fleet.Servers() {
		served += s.Served
		if most[i].Load() > bound || s.Jobs != 0 {
			t.Errorf("server %d: at most %d at once, %+v", i, most[i].Load(), s)
		}
	}
	if served != jobs {
		t.Errorf("%d jobs were served, want %d", served, jobs)
	}
}

func TestCloseEndsJobs(t *testing.T) {
	f := newFake(t)
	fleet := fleetOn(t, nil, f)
	policy := adoptVersion(t, fleet, 0)
	arrived := make(chan struct{})
	f.setHook(onChat(func(_ http.ResponseWriter, r *http.Request) { close(arrived); <-r.Context().Done() }))
	errs := make(chan error, 2)
	go func() { _, err := fleet.Sample(bounded(t), jobOf("j1", policy)); errs <- err }()
	go func() { _, err := fleet.Sample(bounded(t), jobOf("j2", offerOf(9).Policy)); errs <- err }()
	<-arrived
	if err := fleet.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("error %v, want ErrClosed", err)
		}
	}
	if _, err := fleet.Adopt(bounded(t), offerOf(1)); !errors.Is(err, ErrClosed) {
		t.Errorf("Adopt after Close: %v", err)
	}
}

// TestCallerLeaves: a caller that gives up ends its request on the server, and
// the server is not blamed for it.
func TestCallerLeaves(t *testing.T) {
	f := newFake(t)
	fleet := fleetOn(t, nil, f)
	policy := adoptVersion(t, fleet, 0)
	arrived, left := make(chan struct{}), make(chan struct{})
	f.setHook(onChat(func(_ http.ResponseWriter, r *http.Request) { close(arrived); <-r.Context().Done(); close(left) }))
	ctx, cancel := context.WithCancel(bounded(t))
	errs := make(chan error, 1)
	go func() { _, err := fleet.Sample(ctx, jobOf("j1", policy)); errs <- err }()
	<-arrived
	cancel()
	<-left
	if err := <-errs; err != context.Canceled {
		t.Errorf("error %v, want context.Canceled as it is", err)
	}
	if s := fleet.Servers()[0]; s.Failed != 0 || s.Jobs != 0 {
		t.Errorf("the server was blamed: %+v", s)
	}
}

func TestDeadlineWhileSampling(t *testing.T) {
	f := newFake(t)
	fleet := fleetOn(t, nil, f)
	job := jobOf("j1", adoptVersion(t, fleet, 0))
	f.setHook(onChat(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	job.Deadline = time.Now().Add(20 * time.Millisecond)
	_, err := fleet.Sample(bounded(t), job)
	wantDrop(t, err, rollout.ReasonDeadline, "job deadline")
}

func TestRequestTimeout(t *testing.T) {
	f := newFake(t)
	fleet := fleetOn(t, func(o *Options) { o.Timeout, o.Retries = time.Second, -1 }, f)
	job := jobOf("j1", adoptVersion(t, fleet, 0))
	f.setHook(onChat(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	_, err := fleet.Sample(bounded(t), job)
	wantDrop(t, err, rollout.ReasonUnavailable, errTimeout.Error())
}
