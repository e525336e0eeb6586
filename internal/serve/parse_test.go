package serve

import (
	"encoding/json"
	"errors"
	"math"
	"testing"
	"unicode/utf8"

	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

// Whatever the bytes, a request is accepted or refused with an apiError, and an
// accepted one can be turned into a prompt or refused likewise.
func FuzzChatRequest(f *testing.F) {
	dir := newCheckpoint(f, 1)
	s, err := New(Options{Dir: dir, Workers: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := s.Close(); err != nil {
			f.Error(err)
		}
	})
	for _, seed := range []any{
		ask(textPart("yes")), ask(imagePart(pngURL(f, 30, 30, 1), "u"), textPart("x")),
		with(ask(textPart("x")), "stop", "a", "logit_bias", object{"5": 3}, "vllm_xargs", object{"entropy": 1}, "n", 3),
		with(ask(textPart("x")), "stop", []string{"a"}, "max_tokens", 4, "stream_options", nil, "allowed_token_ids", []int{1}),
		object{"messages": []object{{"role": "user", "content": "text"}, {"role": "assistant", "content": nil}}},
		object{"messages": []object{{"role": "user", "content": []object{{"type": "image_url", "image_url": "data:;base64,AAAA"}}}}},
	} {
		raw, err := json.Marshal(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{not json`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var answer *apiError
		request, err := parseChat(raw)
		if err != nil {
			if !errors.As(err, &answer) || answer.status < 400 {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		p, err := s.buildPrompt(request.Messages, true, request.Processor)
		if err == nil {
			_, err = s.sampling(request, len(p.tokens))
		}
		if err != nil && !errors.As(err, &answer) {
			t.Fatalf("refused with %v", err)
		}
	})
}

func FuzzAppendString(f *testing.F) {
	for _, seed := range []string{"", "plain", "quote \" slash \\ \n\t\x00\x1f\x7f", "é世\U0001F600", "\xff\xc3", "\u2028"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var back string
		if err := json.Unmarshal(appendString(nil, []byte(text)), &back); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if utf8.ValidString(text) && back != text {
			t.Fatalf("%q came back as %q", text, back)
		}
	})
}

func TestAppendLogProb(t *testing.T) {
	for x, want := range map[float32]string{-1.5: "-1.5", 0: "0.0", -3: "-3.0", float32(math.Inf(-1)): "-9999.0", -1e-9: "-1e-09"} {
		if got := string(appendLogProb(nil, x)); got != want {
			t.Errorf("%v: %s, want %s", x, got, want)
		}
	}
	var back float32
	if err := json.Unmarshal(appendLogProb(nil, -0.12345679), &back); err != nil || back != -0.12345679 {
		t.Errorf("%v %v", back, err)
	}
}

func TestTokenTexts(t *testing.T) {
	tok, err := tokenizer.Train([]string{"aaaa"}, tokenizer.MinVocab())
	if err != nil {
		t.Fatal(err)
	}
	ids := tok.Encode("aé世")
	w := tokenTexts{tokens: tok}
	var got []string
	for _, id := range append(ids, ids[1], ids[0]) { // ends with a broken character and a plain one
		got = append(got, string(w.of(id)))
		w.next(id)
	}
	want := []string{"a", "", "é", "", "", "世", "", "a"}
	if len(got) != len(want) {
		t.Fatalf("%q", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("token %d: %q, want %q (%q)", i, got[i], want[i], got)
		}
	}
}

func TestPythonFloats(t *testing.T) {
	for x, want := range map[float64]string{-1: "-1.0", 1.5: "1.5", 0: "0.0", 1e30: "1e+30"} {
		if got := python(x); got != want {
			t.Errorf("%v: %s, want %s", x, got, want)
		}
	}
}

func TestImageStoreDropsTheOldest(t *testing.T) {
	k := newKit(t, func(o *Options) { o.CacheBytes = 400_000 }) // two images of 36 patches
	for i := range 3 {
		k.ok("POST", "/v1/chat/completions", ask(imagePart(pngURL(t, 84, 84, i), string(rune('a'+i))), textPart("x")))
	}
	for uuid, want := range map[string]int{"a": 400, "b": 200, "c": 200} {
		if status, _, raw := k.send("POST", "/v1/chat/completions", ask(imagePart("", uuid), textPart("x"))); status != want {
			t.Errorf("%s: %d %s", uuid, status, raw)
		}
	}
}
