package serve

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestChoicesAreThoseOfSingleRequests(t *testing.T) {
	k := newKit(t, nil)
	base := ask(imagePart(pngURL(t, 84, 84, 1), ""), imagePart(pngURL(t, 140, 56, 2), ""), textPart("what is the answer?"))
	all := choicesOf(k.ok("POST", "/v1/chat/completions", with(base, "n", 4)))
	for i, c := range all {
		if int(c["index"].(float64)) != i {
			t.Fatalf("choice %d has index %v", i, c["index"])
		}
		one := choicesOf(k.ok("POST", "/v1/chat/completions", with(base, "seed", 1024+i)))[0]
		if sampled(t, one) != sampled(t, c) {
			t.Errorf("choice %d differs from the single request with seed + %d", i, i)
		}
	}
}

func TestLengthsAndUsage(t *testing.T) {
	k := newKit(t, nil)
	r := k.ok("POST", "/v1/chat/completions", with(ask(imagePart(pngURL(t, 84, 84, 1), ""), textPart("yes")), "n", 2))
	usage := r["usage"].(object)
	prompt := len(r["prompt_token_ids"].([]any))
	if usage["prompt_tokens"] != float64(prompt) || usage["completion_tokens"] != 24.0 || usage["total_tokens"] != float64(prompt+24) {
		t.Errorf("usage %v, prompt %d", usage, prompt)
	}
	details := usage["prompt_tokens_details"].(object)
	if details["multimodal_tokens"] != 9.0 || details["cached_tokens"] != 0.0 {
		t.Errorf("details %v", details)
	}
	for _, c := range choicesOf(r) {
		content := c["logprobs"].(object)["content"].([]any)
		if len(c["token_ids"].([]any)) != 12 || len(content) != 12 || c["finish_reason"] != "length" {
			t.Errorf("choice %v", c)
		}
	}
	// Without a limit the response may fill the model's length.
	long := ask(textPart("yes"))
	delete(long, "max_completion_tokens")
	r = k.ok("POST", "/v1/chat/completions", long)
	if total := r["usage"].(object)["total_tokens"]; total != 1024.0 {
		t.Errorf("unlimited total %v, want the model's 1024", total)
	}
}

func TestTopLogprobsStandSampledFirst(t *testing.T) {
	k := newKit(t, nil)
	r := k.ok("POST", "/v1/chat/completions", with(ask(textPart("yes")), "top_logprobs", 5, "return_tokens_as_token_ids", true))
	for _, e := range choicesOf(r)[0]["logprobs"].(object)["content"].([]any) {
		entry := e.(object)
		top := entry["top_logprobs"].([]any)
		if len(top) != 5 || top[0].(object)["token"] != entry["token"] || top[0].(object)["logprob"] != entry["logprob"] {
			t.Fatalf("entry %v", entry)
		}
		for i := 2; i < 5; i++ {
			if top[i].(object)["logprob"].(float64) > top[i-1].(object)["logprob"].(float64) {
				t.Errorf("candidates do not fall: %v", top)
			}
		}
		if !strings.HasPrefix(entry["token"].(string), "token_id:") {
			t.Errorf("token %v", entry["token"])
		}
	}
	// What truncation removes is written as -9999.
	r = k.ok("POST", "/v1/chat/completions", with(ask(textPart("yes")), "top_logprobs", 5, "top_k", 2))
	top := choicesOf(r)[0]["logprobs"].(object)["content"].([]any)[0].(object)["top_logprobs"].([]any)
	if last := top[4].(object)["logprob"]; last != -9999.0 {
		t.Errorf("last of %v", top)
	}
}

func TestEntropyExtension(t *testing.T) {
	k := newKit(t, func(o *Options) { o.MaxLogprobs = -1 })
	r := k.ok("POST", "/v1/chat/completions", with(ask(textPart("yes")), "temperature", 0.7, "top_logprobs", -1, "vllm_xargs", object{"entropy": true}))
	c := choicesOf(r)[0]
	entropies := c["token_entropies"].([]any)
	for i, e := range c["logprobs"].(object)["content"].([]any) {
		h := 0.0
		for _, candidate := range e.(object)["top_logprobs"].([]any) {
			lp := candidate.(object)["logprob"].(float64)
			h -= math.Exp(lp) * lp
		}
		if math.Abs(h-entropies[i].(float64)) > 1e-4 {
			t.Errorf("token %d: entropy %v, from all log-probabilities %v", i, entropies[i], h)
		}
	}
	if plain := choicesOf(k.ok("POST", "/v1/chat/completions", ask(textPart("yes"))))[0]; plain["token_entropies"] != nil {
		t.Error("entropies without being asked for")
	}
}

// plainIDs are the tokens made of printable ASCII, so that a random model says
// something that can be cut.
func (k *kit) plainIDs() (ids []int32) {
	for id := range int32(k.server.tokens.Size()) {
		text, _ := k.server.tokens.Bytes(id)
		plain := len(text) > 0 && !k.server.tokens.Special(id)
		for _, c := range text {
			plain = plain && c > ' ' && c < 0x7f
		}
		if plain {
			ids = append(ids, id)
		}
	}
	return ids
}

// cut returns three characters from the middle of a text.
func cut(t *testing.T, text string) string {
	t.Helper()
	if len(text) < 12 {
		t.Fatalf("text %q is too short to cut", text)
	}
	return text[len(text)/2 : len(text)/2+3]
}

func TestStopStrings(t *testing.T) {
	k := newKit(t, nil)
	base := with(ask(textPart("yes")), "max_completion_tokens", 60, "allowed_token_ids", k.plainIDs())
	whole := choicesOf(k.ok("POST", "/v1/chat/completions", base))[0]
	text := whole["message"].(object)["content"].(string)
	stop := cut(t, text)
	before := text[:strings.Index(text, stop)]
	c := choicesOf(k.ok("POST", "/v1/chat/completions", with(base, "stop", stop)))[0]
	if c["message"].(object)["content"] != before || c["finish_reason"] != "stop" || c["stop_reason"] != stop {
		t.Errorf("stop %q: %v", stop, c)
	}
	ids := c["token_ids"].([]any)
	if !slices.Equal(ids, whole["token_ids"].([]any)[:len(ids)]) || len(ids) != len(c["logprobs"].(object)["content"].([]any)) {
		t.Error("token ids of the stopped choice are no prefix")
	}
	c = choicesOf(k.ok("POST", "/v1/chat/completions", with(base, "stop", []string{"no such text", stop}, "include_stop_str_in_output", true)))[0]
	if c["message"].(object)["content"] != before+stop {
		t.Errorf("included: %q", c["message"].(object)["content"])
	}
	c = choicesOf(k.ok("POST", "/v1/chat/completions", with(base, "stop", stop, "min_tokens", 60)))[0]
	if c["finish_reason"] != "length" {
		t.Errorf("stop string before the minimum: %v", c["finish_reason"])
	}
}

func TestEndTokens(t *testing.T) {
	k := newKit(t, nil)
	end, _ := k.server.tokens.ID("<|im_end|>")
	other, _ := k.server.tokens.ID("<|endoftext|>")
	for id, reason := range map[int32]any{end: nil, other: float64(other)} {
		r := k.ok("POST", "/v1/chat/completions", with(ask(textPart("yes")), "ignore_eos", false, "logit_bias", object{fmt.Sprint(id): 100}))
		c := choicesOf(r)[0]
		if c["finish_reason"] != "stop" || c["stop_reason"] != reason || c["message"].(object)["content"] != "" || len(c["token_ids"].([]any)) != 1 {
			t.Errorf("token %d: %v", id, c)
		}
	}
}

func TestImageUUIDs(t *testing.T) {
	k := newKit(t, nil)
	red, blue := pngURL(t, 84, 84, 1), pngURL(t, 84, 84, 200)
	get := func(parts ...object) string {
		return sampled(t, choicesOf(k.ok("POST", "/v1/chat/completions", ask(append(parts, textPart("what?"))...)))[0])
	}
	wantRed, wantBlue := get(imagePart(red, "")), get(imagePart(blue, ""))
	if wantRed == wantBlue {
		t.Fatal("the image does not matter")
	}
	if get(imagePart(red, "one")) != wantRed || get(imagePart("", "one")) != wantRed {
		t.Error("uuid alone does not stand for its image")
	}
	// Other bytes under a known uuid are looked at, and rename it.
	if get(imagePart(blue, "one")) != wantBlue || get(imagePart("", "one")) != wantBlue {
		t.Error("a known uuid hid the bytes that came with it")
	}
	k.ok("POST", "/reset_mm_cache", nil)
	status, _, raw := k.send("POST", "/v1/chat/completions", ask(imagePart("", "one"), textPart("what?")))
	if status != 400 || !strings.Contains(string(raw), "Cache miss for image at index 0 but data is not provided.") {
		t.Errorf("after reset: %d %s", status, raw)
	}
	if get(imagePart(red, "one")) != wantRed {
		t.Error("after reset")
	}
}

func TestPixelLimitsOfTheRequest(t *testing.T) {
	k := newKit(t, nil)
	base := ask(imagePart(pngURL(t, 112, 112, 1), "u"), textPart("what?"))
	count := func(body object) int {
		return len(k.ok("POST", "/v1/chat/completions", body)["prompt_token_ids"].([]any))
	}
	small := count(with(base, "mm_processor_kwargs", object{"max_pixels": 4 * 28 * 28}))
	if large := count(base); large-small != 16-4 {
		t.Errorf("%d and %d prompt tokens, want 12 more", small, large)
	}
	if status, _, _ := k.send("POST", "/v1/chat/completions", with(base, "mm_processor_kwargs", object{"max_pixels": -1})); status != 400 {
		t.Errorf("negative pixels: %d", status)
	}
}

func TestRefusesWhatItCannotDo(t *testing.T) {
	k := newKit(t, func(o *Options) { o.MaxBody = 1 << 20 })
	for name, tc := range map[string]struct {
		change []any
		status int
		param  any
	}{
		"prompt logprobs":        {[]any{"prompt_logprobs", 1}, 400, "prompt_logprobs"},
		"json output":            {[]any{"response_format", object{"type": "json_object"}}, 400, "response_format"},
		"tools":                  {[]any{"tools", []object{{"type": "function"}}}, 400, "tools"},
		"bad words":              {[]any{"bad_words", []string{"x"}}, 400, "bad_words"},
		"template":               {[]any{"chat_template", "x"}, 400, "chat_template"},
		"priority":               {[]any{"priority", 1}, 400, "priority"},
		"continue":               {[]any{"continue_final_message", true}, 400, "continue_final_message"},
		"empty salt":             {[]any{"cache_salt", ""}, 400, "cache_salt"},
		"n of another type":      {[]any{"n", "four"}, 400, "body.n"},
		"too many choices":       {[]any{"n", 1 << 20}, 400, nil},
		"top_p 0":                {[]any{"top_p", 0}, 400, "top_p"},
		"top_k -2":               {[]any{"top_k", -2}, 400, nil},
		"min_p 2":                {[]any{"min_p", 2}, 400, nil},
		"penalty 3":              {[]any{"presence_penalty", 3}, 400, nil},
		"frequency -3":           {[]any{"frequency_penalty", -3}, 400, nil},
		"repetition 0":           {[]any{"repetition_penalty", 0}, 400, nil},
		"max tokens 0":           {[]any{"max_completion_tokens", 0}, 400, "max_completion_tokens"},
		"min over max":           {[]any{"min_tokens", 13}, 400, nil},
		"negative min":           {[]any{"min_tokens", -1}, 400, nil},
		"top without logprobs":   {[]any{"logprobs", false, "top_logprobs", 2}, 400, "top_logprobs"},
		"bias key":               {[]any{"logit_bias", object{"x": 1}}, 400, "logit_bias"},
		"bias outside":           {[]any{"logit_bias", object{"99999": 1}}, 400, "logit_bias"},
		"nothing allowed":        {[]any{"allowed_token_ids", []int{}}, 400, nil},
		"allowed outside":        {[]any{"allowed_token_ids", []int{-1}}, 400, "allowed_token_ids"},
		"empty stop":             {[]any{"stop", []string{""}}, 400, nil},
		"huge body":              {[]any{"request_id", strings.Repeat("x", 2<<20)}, 413, nil},
		"no role":                {[]any{"messages", []object{{"content": "x"}}}, 400, "body.messages"},
		"content of other type":  {[]any{"messages", []object{{"role": "user", "content": 7}}}, 400, "body.messages.content"},
		"unknown part":           {[]any{"messages", []object{{"role": "user", "content": []object{{"type": "audio"}}}}}, 400, nil},
		"pad in the text":        {[]any{"messages", []object{{"role": "user", "content": "<|image_pad|>"}}}, 400, nil},
		"unknown URL":            {[]any{"messages", []object{{"role": "user", "content": []object{imagePart("ftp://x/y", "")}}}}, 400, nil},
		"data URL without comma": {[]any{"messages", []object{{"role": "user", "content": []object{imagePart("data:image/png;base64", "")}}}}, 400, nil},
	} {
		t.Run(name, func(t *testing.T) {
			status, _, raw := k.send("POST", "/v1/chat/completions", with(ask(textPart("yes")), tc.change...))
			var body struct {
				Error struct {
					Param any
					Code  int
				}
			}
			if err := json.Unmarshal(raw, &body); err != nil {
				t.Fatalf("%v: %s", err, raw)
			}
			if status != tc.status || body.Error.Param != tc.param || body.Error.Code != status {
				t.Errorf("%d %s, want %d about %v", status, raw, tc.status, tc.param)
			}
		})
	}
	k.ok("POST", "/v1/chat/completions", ask(textPart("yes"))) // it lives
}

func TestTokenizeRoundTrip(t *testing.T) {
	k := newKit(t, nil)
	const text = "the disc is red, 42 times! <|im_end|>\n"
	r := k.ok("POST", "/tokenize", object{"prompt": text, "return_token_strs": true})
	if len(r["token_strs"].([]any)) != int(r["count"].(float64)) || r["max_model_len"] != 1024.0 {
		t.Errorf("%v", r)
	}
	if back := k.ok("POST", "/detokenize", object{"tokens": r["tokens"]}); back["prompt"] != text {
		t.Errorf("back: %q", back["prompt"])
	}
	// The ids of a conversation are those that a chat completion reports.
	messages := ask(imagePart(pngURL(t, 84, 84, 3), ""), textPart("what?"))["messages"]
	ids := k.ok("POST", "/tokenize", object{"messages": messages})["tokens"].([]any)
	if chat := k.ok("POST", "/v1/chat/completions", ask(imagePart(pngURL(t, 84, 84, 3), ""), textPart("what?"))); !slices.Equal(ids, chat["prompt_token_ids"].([]any)) {
		t.Errorf("tokenize %v, chat %v", ids, chat["prompt_token_ids"])
	}
	for path, body := range map[string]object{"/tokenize": {}, "/detokenize": {"tokens": []int{-1}}} {
		if status, _, raw := k.send("POST", path, body); status != 400 {
			t.Errorf("%s: %d %s", path, status, raw)
		}
	}
}
