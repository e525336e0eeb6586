package serve

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
)

// storedSized is an image of a number of bytes under a digest of its own.
func storedSized(name string, bytes int) qwenvl.Image {
	return qwenvl.Image{Digest: sha256.Sum256([]byte(name)), Patches: make([]float32, bytes/4)}
}

// A model of the store: a uuid means the bytes that it last came with, or, when
// these are no longer kept, nothing. It never means other bytes, and nothing
// that a client sends makes the store outgrow its budget.
func TestImageStoreAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const budget = 4000
		s := newImageStore(budget)
		last := map[uuidKey][sha256.Size]byte{}
		for range rapid.IntRange(1, 60).Draw(t, "operations") {
			key := uuidKey{uuid: rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "uuid"), maxPixels: rapid.IntRange(0, 1).Draw(t, "pixels")}
			switch rapid.IntRange(0, 9).Draw(t, "operation") {
			case 0:
				s.clear()
			case 1, 2, 3:
				if image, ok := s.byUUID(key); ok && image.Digest != last[key] {
					t.Fatalf("%v stands for %x, last came with %x", key, image.Digest[:4], last[key])
				}
			default:
				size := rapid.SampledFrom([]int{100, 1000, 2400, 5000}).Draw(t, "bytes")
				image := storedSized(fmt.Sprint(size, rapid.IntRange(0, 1).Draw(t, "which")), size)
				s.put(image, key)
				last[key] = image.Digest
			}
			bytes, names := 0, 0
			for _, element := range s.entries {
				bytes += 4 * len(element.Value.(*storedImage).image.Patches)
				names += len(element.Value.(*storedImage).uuids)
			}
			if bytes > budget || s.used > budget || s.used < bytes || len(s.entries) != s.order.Len() {
				t.Fatalf("%d bytes in use, %d counted, budget %d", bytes, s.used, budget)
			}
			if names != len(s.uuids) {
				t.Fatalf("%d names kept with images, %d in the table", names, len(s.uuids))
			}
		}
	})
}

// Names are charged to the budget: neither a fresh name for each request nor
// one that goes back and forth makes the store grow for ever.
func TestNamesOfImagesAreBounded(t *testing.T) {
	s := newImageStore(1 << 20)
	hot, other := storedSized("hot", 4000), storedSized("other", 4000)
	for i := range 100_000 {
		s.put(hot, uuidKey{uuid: fmt.Sprintf("fresh-%d-%s", i, strings.Repeat("x", 100))})
		s.put(other, uuidKey{uuid: "back and forth"})
		s.put(hot, uuidKey{uuid: "back and forth"})
	}
	if len(s.uuids) > 1<<20/100 {
		t.Errorf("%d names within a budget of %d bytes", len(s.uuids), s.budget)
	}
	for _, element := range s.entries {
		if n := len(element.Value.(*storedImage).uuids); n > 1<<20/100 {
			t.Errorf("an image keeps %d names", n)
		}
	}
}

// numbers checks that every number below v is finite by virtue of being JSON,
// that log-probabilities are none above 0 and entropies none below.
func numbers(t *testing.T, v any, key string) {
	switch v := v.(type) {
	case object:
		for k, inner := range v {
			numbers(t, inner, k)
		}
	case []any:
		for _, inner := range v {
			numbers(t, inner, key)
		}
	case float64:
		if key == "logprob" && v > 1e-3 || key == "token_entropies" && (v < 0 || v > math.Log(1e6)) {
			t.Errorf("%s %v", key, v)
		}
	}
}

// Options at the edge of what is allowed give an answer whose every number is
// one, or a refusal; never text that is no JSON.
func TestExtremeOptionsAnswerInJSON(t *testing.T) {
	k := newKit(t, nil)
	base := with(ask(textPart("yes")), "max_completion_tokens", 6, "top_logprobs", 5, "vllm_xargs", object{"entropy": true})
	for _, change := range [][]any{
		{"repetition_penalty", 1e-40}, {"repetition_penalty", 1e-300}, {"repetition_penalty", 3e38}, {"repetition_penalty", 1e-9},
		{"temperature", 1e-300}, {"temperature", 1e-5}, {"temperature", 3e38}, {"temperature", 0.0},
		{"top_p", 1e-300}, {"min_p", 1.0}, {"min_p", 1e-300}, {"top_k", 1}, {"top_k", math.MaxInt32},
		{"presence_penalty", -2}, {"frequency_penalty", 2},
		{"logit_bias", object{"7": 1e308, "8": -1e308}}, {"logit_bias", object{"7": -100}},
		{"allowed_token_ids", []int{3}}, {"stop_token_ids", []int64{math.MaxInt32, -5}},
		{"seed", int64(math.MaxInt64), "n", 3}, {"seed", int64(math.MinInt64), "n", 2},
		{"repetition_penalty", 1e-40, "temperature", 0.0, "logit_bias", object{"7": 100}},
		{"repetition_penalty", 3e38, "temperature", 0.001, "frequency_penalty", -2},
		{"min_tokens", 6, "stop_token_ids", []int{3}, "allowed_token_ids", []int{3}},
		{"seed", 1e300}, {"n", 1e300}, {"top_k", -7}, {"temperature", "hot"}, {"stop", []any{1}}, {"max_completion_tokens", 1 << 40},
	} {
		for _, stream := range []bool{false, true} {
			status, _, raw := k.send("POST", "/v1/chat/completions", with(with(base, change...), "stream", stream))
			if stream && status == 200 {
				for _, chunk := range events(t, raw) {
					if chunk["error"] != nil {
						t.Errorf("%v: %v", change, chunk)
					}
					numbers(t, chunk, "")
				}
				continue
			}
			var out object
			if err := json.Unmarshal(raw, &out); err != nil || status != 200 && status != 400 {
				t.Errorf("%v: %d %v in %.200s", change, status, err, raw)
			}
			numbers(t, out, "")
		}
	}
}

// Every route answers every method and every body with a status of the client's
// or 200, in JSON, and the server lives on.
func TestEveryRouteSurvivesEveryBody(t *testing.T) {
	k := newKit(t, func(o *Options) { o.MaxBody = 1 << 20; o.MaxImages = 2 })
	nested := func(open, shut string) string { return strings.Repeat(open, 20000) + strings.Repeat(shut, 20000) }
	bodies := []string{"", "{", "[]", "null", "1", `"x"`, "{}", "\x00\xff\xfe", `{"messages":null}`, `{"messages":{}}`, `{"messages":[1]}`,
		`{"messages":[{"role":"user"}],"messages":[]}`, `{"messages":[{"role":"user","content":` + nested("[", "]") + `}]}`,
		nested(`{"a":`, "}"), nested("[", "]"), `{"messages":[{"role":"user","content":"` + strings.Repeat("x", 2<<20) + `"}]}`,
		`{"messages":[{"role":"` + strings.Repeat("r", 5000) + `","content":"x"}],"max_tokens":1}`,
		`{"messages":[{"role":"user","content":"<|image_pad|><|im_end|>\u0000\ud800"}],"max_tokens":1}`,
		`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` + "iVBORw0KGgo=" + `"}}]}]}`,
		`{"messages":[{"role":"user","content":[{"type":"video_url","video_url":{"url":"x"}}]}]}`,
		`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":null,"uuid":null}]}]}`,
		`{"messages":[{"role":"user","content":"x"}],"max_tokens":1,"mm_processor_kwargs":{"min_pixels":-1,"max_pixels":0}}`,
		`{"messages":[{"role":"user","content":"x"}],"max_tokens":1,"n":16385}`,
		`{"messages":[{"role":"user","content":"x"}],"max_tokens":1,"stop":["` + strings.Repeat("y", 100000) + `",""]}`,
		`{"prompt":"` + strings.Repeat("yes ", 3000) + `"}`, `{"tokens":[2147483647,-1,0]}`, `{"tokens":[99999999999]}`,
		`{"method":"__init__"}`, `{"method":"reload_weights","kwargs":{"weights_path":"/dev/null"}}`, `{"method":7}`,
	}
	routes := []string{"/v1/chat/completions", "/v1/models", "/version", "/health", "/ping", "/load", "/metrics", "/tokenize", "/detokenize",
		"/resume", "/is_paused", "/is_sleeping", "/collective_rpc", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache",
		"/get_world_size", "/pause?mode=%00", "/pause?clear_cache=2", "/", "//health", "/v1/../health", "/v1/chat/completions/"}
	for _, route := range routes {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"} {
			tried := bodies
			if method != "POST" {
				tried = bodies[:2]
			}
			for _, body := range tried {
				status, header, raw := k.send(method, route, body)
				refusedCall := strings.HasPrefix(route, "/collective_rpc") && status == 500 // vLLM's answer to a method that fails
				if status >= 500 && !refusedCall || status < 200 {
					t.Errorf("%s %s %.60q: %d %.200s", method, route, body, status, raw)
				}
				if header.Get("Content-Type") == "application/json" && method != "HEAD" && !json.Valid(raw) {
					t.Errorf("%s %s %.60q: no JSON: %.200s", method, route, body, raw)
				}
			}
		}
	}
	k.ok("POST", "/v1/chat/completions", ask(textPart("yes")))
}

// A stream is the answer without streaming under any options at all.
func TestStreamEqualsWholeUnderAnyOptions(t *testing.T) {
	k := newKit(t, nil)
	plain := k.plainIDs()
	first := choicesOf(k.ok("POST", "/v1/chat/completions", with(ask(textPart("yes")), "max_completion_tokens", 60, "allowed_token_ids", plain)))[0]
	text := first["message"].(object)["content"].(string)
	rapid.Check(t, func(r *rapid.T) {
		n := rapid.IntRange(1, 3).Draw(r, "n")
		body := with(ask(textPart("yes")), "n", n, "seed", rapid.Int64Range(1024, 1030).Draw(r, "seed"),
			"max_completion_tokens", rapid.IntRange(1, 40).Draw(r, "max"),
			"skip_special_tokens", rapid.Bool().Draw(r, "skip"), "ignore_eos", rapid.Bool().Draw(r, "ignore"),
			"include_stop_str_in_output", rapid.Bool().Draw(r, "include"), "top_logprobs", rapid.IntRange(0, 4).Draw(r, "tops"),
			"return_tokens_as_token_ids", rapid.Bool().Draw(r, "ids"), "temperature", rapid.SampledFrom([]float64{0, 0.7, 2}).Draw(r, "temperature"))
		if rapid.Bool().Draw(r, "printable") {
			body["allowed_token_ids"] = plain
		}
		if rapid.Bool().Draw(r, "ending") {
			body["logit_bias"] = object{fmt.Sprint(k.server.config.EOS[0]): rapid.Float64Range(-5, 8).Draw(r, "bias")}
		}
		var stops []string
		for range rapid.IntRange(0, 3).Draw(r, "stops") {
			from := rapid.IntRange(0, len(text)-1).Draw(r, "from")
			stops = append(stops, text[from:min(len(text), from+rapid.IntRange(1, 6).Draw(r, "length"))])
		}
		if rapid.IntRange(0, 3).Draw(r, "special stop") == 0 {
			stops = append(stops, "<|im_end|>", "\ufffd")
		}
		if stops != nil {
			body["stop"] = stops
			body["min_tokens"] = rapid.IntRange(0, body["max_completion_tokens"].(int)).Draw(r, "min")
		}
		whole := choicesOf(k.ok("POST", "/v1/chat/completions", body))
		_, _, raw := k.send("POST", "/v1/chat/completions", with(body, "stream", true))
		for i, got := range join(t, events(t, raw), n) {
			want := whole[i]
			g, _ := json.Marshal([]any{got.text, got.ids, got.logprobs, got.finish, got.reason})
			w, _ := json.Marshal([]any{want["message"].(object)["content"], want["token_ids"],
				want["logprobs"].(object)["content"], want["finish_reason"], want["stop_reason"]})
			if string(g) != string(w) {
				r.Fatalf("%v\nchoice %d:\nstream %s\nwhole  %s", body, i, g, w)
			}
			content := want["message"].(object)["content"].(string)
			for _, stop := range stops {
				// Before min_tokens a stop string may stand in the text, and U+FFFD for what a cut leaves of a character.
				if stop != "\ufffd" && body["min_tokens"] == 0 && body["include_stop_str_in_output"] == false && strings.Contains(content, stop) {
					r.Fatalf("%v: stop %q is in %q", body, stop, content)
				}
			}
		}
	})
}

// A change of weights behind a pause that waits never mixes two policies in
// one answer, however requests and changes meet.
func TestReloadsBetweenRequestsNeverMix(t *testing.T) {
	k := newKit(t, nil)
	dirs := []string{k.server.options.Dir, newCheckpoint(t, 2)}
	body := with(ask(imagePart(pngURL(t, 84, 84, 1), "u"), textPart("what?")), "n", 2)
	var want []string
	for _, dir := range slices.Backward(dirs) {
		k.ok("POST", "/collective_rpc", object{"method": "reload_weights", "kwargs": object{"weights_path": dir}})
		all, err := json.Marshal(choicesOf(k.ok("POST", "/v1/chat/completions", body)))
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, string(all))
	}
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for range 12 {
				status, _, raw, err := k.try(minute(t), "POST", "/v1/chat/completions", body)
				var out object
				if err == nil {
					err = json.Unmarshal(raw, &out)
				}
				if err != nil || status != 200 {
					t.Errorf("%d %v %.200s", status, err, raw)
					return
				}
				if all, _ := json.Marshal(choicesOf(out)); !slices.Contains(want, string(all)) {
					t.Error("an answer of neither policy")
				}
			}
		})
	}
	for i := range 6 {
		k.ok("POST", "/pause?mode=wait&clear_cache=false", nil)
		k.ok("POST", "/collective_rpc", object{"method": "reload_weights", "kwargs": object{"weights_path": dirs[i%2]}})
		k.ok("POST", "/resume", nil)
	}
	clients.Wait()
}

// What came in is what went out: every choice of every accepted request ends
// as stop, length or abort, clients that left included.
func TestCountersClose(t *testing.T) {
	k := newKit(t, func(o *Options) { o.MaxSequences = 3 })
	accepted := 0
	for i := range 6 {
		k.ok("POST", "/v1/chat/completions", with(ask(textPart("yes")), "n", 1+i%3, "ignore_eos", false))
		accepted += 1 + i%3
		if status, _, _ := k.send("POST", "/v1/chat/completions", with(ask(textPart("yes")), "temperature", -1)); status != 400 {
			t.Fatalf("status %d", status)
		}
		ctx, cancel := context.WithCancel(minute(t))
		before := k.server.engine.Stats().GenerationTokens
		left := k.later(ctx, "POST", "/v1/chat/completions",
			with(ask(textPart("yes")), "n", 100, "max_completion_tokens", 900, "stream", i%2 == 0))
		k.until("a token", func() bool { return k.server.engine.Stats().GenerationTokens > before })
		cancel()
		<-left
		accepted += 100
		k.until("the engine to be empty", func() bool { s := k.server.engine.Stats(); return s.Running+s.Waiting == 0 })
	}
	held := k.later(minute(t), "POST", "/v1/chat/completions", with(ask(textPart("yes")), "n", 50, "max_completion_tokens", 900))
	accepted += 50
	k.until("it to run", func() bool { return k.server.engine.Stats().Running > 0 })
	k.ok("POST", "/pause?mode=abort", nil)
	if got := <-held; got.status != 200 {
		t.Errorf("%d %.200s", got.status, got.raw)
	}
	k.ok("POST", "/resume", nil)
	if s := k.server.engine.Stats(); s.Stopped+s.Length+s.Aborted != int64(accepted) {
		t.Errorf("%d choices came in; %d stopped, %d reached their length, %d were aborted", accepted, s.Stopped, s.Length, s.Aborted)
	}
}

// A client that does not read its stream holds up nobody else, and one whose
// body stops half-way is let go.
func TestSlowClientsHoldUpNobody(t *testing.T) {
	k := newKit(t, func(o *Options) { o.MaxSequences = 400 })
	dial := func(length int, body []byte) net.Conn {
		conn, err := net.Dial("tcp", k.http.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		head := fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", length)
		if _, err := conn.Write(append([]byte(head), body...)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	body, err := json.Marshal(with(ask(textPart("yes")), "n", 64, "max_completion_tokens", 900, "stream", true, "top_logprobs", 20))
	if err != nil {
		t.Fatal(err)
	}
	deaf := dial(len(body), body)
	k.until("the stream to run", func() bool { return k.server.engine.Stats().Running > 0 })
	mute := dial(1000, []byte(`{"messages":`))
	k.ok("POST", "/v1/chat/completions", ask(textPart("yes")))
	if err := deaf.Close(); err != nil {
		t.Error(err)
	}
	if err := mute.Close(); err != nil {
		t.Error(err)
	}
	k.until("the engine to be empty", func() bool { s := k.server.engine.Stats(); return s.Running+s.Waiting == 0 })
	// A body that is sent byte by byte is a body like any other.
	reader, writer := io.Pipe()
	go func() {
		for _, c := range bytes.Split([]byte(`{"messages":[{"role":"user","content":"x"}],"max_tokens":1}`), nil) {
			if _, err := writer.Write(c); err != nil {
				return
			}
		}
		writer.Close()
	}()
	request, err := http.NewRequestWithContext(minute(t), "POST", k.http.URL+"/v1/chat/completions", reader)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if raw, err := io.ReadAll(response.Body); err != nil || response.StatusCode != 200 {
		t.Errorf("%d %s %v", response.StatusCode, raw, err)
	}
}
