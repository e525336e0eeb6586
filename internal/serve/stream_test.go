package serve

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// events parses a response of server-sent events.
func events(t *testing.T, raw []byte) (chunks []object) {
	t.Helper()
	lines := bufio.NewScanner(bytes.NewReader(raw))
	lines.Buffer(nil, 1<<20)
	done := false
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		switch {
		case lines.Text() == "":
		case !ok || done:
			t.Fatalf("line %q", lines.Text())
		case data == "[DONE]":
			done = true
		default:
			var chunk object
			if err := json.Unmarshal([]byte(data), &chunk); err != nil {
				t.Fatalf("%v in %s", err, data)
			}
			chunks = append(chunks, chunk)
		}
	}
	if !done {
		t.Fatalf("no [DONE] in %s", raw)
	}
	return chunks
}

// joined is what a stream says about one choice.
type joined struct {
	text     string
	ids      []any
	logprobs []any
	finish   any
	reason   any
}

func join(t *testing.T, chunks []object, n int) []joined {
	t.Helper()
	out := make([]joined, n)
	for _, chunk := range chunks {
		if chunk["object"] != "chat.completion.chunk" {
			t.Fatalf("chunk %v", chunk)
		}
		for _, c := range choicesOf(chunk) {
			j := &out[int(c["index"].(float64))]
			if j.finish != nil {
				t.Fatalf("a chunk after the end: %v", c)
			}
			j.text += c["delta"].(object)["content"].(string)
			if ids, ok := c["token_ids"].([]any); ok {
				j.ids = append(j.ids, ids...)
			}
			if lp, ok := c["logprobs"].(object); ok {
				j.logprobs = append(j.logprobs, lp["content"].([]any)...)
			}
			j.finish, j.reason = c["finish_reason"], c["stop_reason"]
		}
	}
	return out
}

// A stream, put together, is the answer without streaming.
func TestStreamEqualsWhole(t *testing.T) {
	k := newKit(t, nil)
	base := with(ask(imagePart(pngURL(t, 84, 84, 1), ""), textPart("what?")), "n", 3, "max_completion_tokens", 40, "allowed_token_ids", k.plainIDs())
	plain := choicesOf(k.ok("POST", "/v1/chat/completions", base))
	stops := []string{cut(t, plain[0]["message"].(object)["content"].(string)), cut(t, plain[1]["message"].(object)["content"].(string))}
	for name, change := range map[string][]any{
		"plain":    {},
		"stops":    {"stop", stops},
		"included": {"stop", stops, "include_stop_str_in_output", true},
		"tops":     {"top_logprobs", 3},
		"ends":     {"ignore_eos", false, "allowed_token_ids", nil, "logit_bias", object{fmt.Sprint(k.server.config.EOS[0]): 4}},
		"special":  {"skip_special_tokens", false, "allowed_token_ids", nil},
		"bytes":    {"allowed_token_ids", nil},
	} {
		t.Run(name, func(t *testing.T) {
			whole := k.ok("POST", "/v1/chat/completions", with(base, change...))
			status, header, raw := k.send("POST", "/v1/chat/completions",
				with(with(base, change...), "stream", true, "stream_options", object{"include_usage": true}))
			if status != 200 || header.Get("Content-Type") != "text/event-stream; charset=utf-8" {
				t.Fatalf("%d %v %s", status, header, raw)
			}
			chunks := events(t, raw)
			last := chunks[len(chunks)-1]
			if len(choicesOf(last)) != 0 || last["usage"].(object)["total_tokens"] != whole["usage"].(object)["total_tokens"] {
				t.Errorf("usage %v, want %v", last, whole["usage"])
			}
			if !slices.Equal(chunks[0]["prompt_token_ids"].([]any), whole["prompt_token_ids"].([]any)) {
				t.Error("prompt ids differ")
			}
			for i, got := range join(t, chunks, 3) {
				want := choicesOf(whole)[i]
				g, _ := json.Marshal([]any{got.text, got.ids, got.logprobs, got.finish, got.reason})
				w, _ := json.Marshal([]any{want["message"].(object)["content"], want["token_ids"],
					want["logprobs"].(object)["content"], want["finish_reason"], want["stop_reason"]})
				if string(g) != string(w) {
					t.Errorf("choice %d:\n%s\n%s", i, g, w)
				}
			}
		})
	}
}

func TestStreamReportsErrorsBeforeItStarts(t *testing.T) {
	k := newKit(t, nil)
	status, header, raw := k.send("POST", "/v1/chat/completions", with(ask(textPart("x")), "stream", true, "temperature", -1))
	if status != 400 || header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %v %s", status, header, raw)
	}
}
