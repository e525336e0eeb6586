package vllm

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
)

// tree is the same response read with encoding/json: the slow way that the
// scanner is compared with.
type tree struct {
	Prompt  []int32 `json:"prompt_token_ids"`
	Choices []struct {
		Index   int
		Message struct{ Content string }
		Finish  string  `json:"finish_reason"`
		Tokens  []int32 `json:"token_ids"`
		Log     struct {
			Content []struct {
				Logprob float64
				Top     []struct{ Logprob float64 } `json:"top_logprobs"`
			}
		} `json:"logprobs"`
	}
}

// TestRealResponses parses what stock vLLM 0.25.1 really sent and compares it,
// field by field, with encoding/json.
func TestRealResponses(t *testing.T) {
	for name, c := range map[string]struct{ n, k, max int }{
		"chat_n4_two_images_T0.7":  {4, 0, 32},
		"chat_top5_T1.0":           {1, 4, 12},
		"chat_finish_stop_biased":  {2, 0, 400},
		"chat_during_pause_abort":  {4, 0, 900},
		"chat_trunc_top_k":         {1, 0, 64},
		"chat_top5_T1.0 unreduced": {1, 0, 12},
	} {
		t.Run(name, func(t *testing.T) {
			name, _, _ = strings.Cut(name, " ")
			_, body := real(t, name)
			var want tree
			if err := json.Unmarshal(body, &want); err != nil {
				t.Fatal(err)
			}
			got, err := parseAnswer(body, rollout.Sampling{Traces: c.n, TopLogprobs: c.k, MaxTokens: c.max})
			if err != nil {
				t.Fatal(err)
			}
			traces, err := got.traces(c.n)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got.prompt, want.Prompt) || len(want.Prompt) == 0 {
				t.Errorf("prompt %v, want %v", got.prompt, want.Prompt)
			}
			for _, w := range want.Choices {
				g := traces[w.Index]
				if !slices.Equal(g.Tokens, w.Tokens) || g.Text != w.Message.Content || g.Finish.String() != w.Finish || len(w.Tokens) == 0 {
					t.Errorf("choice %d: %d tokens, %q, %s; want %d, %q, %s", w.Index, len(g.Tokens), g.Text, g.Finish, len(w.Tokens), w.Message.Content, w.Finish)
				}
				for i, entry := range w.Log.Content {
					if g.Logprobs[i] != float32(entry.Logprob) {
						t.Fatalf("choice %d, token %d: log-probability %v, want %v", w.Index, i, g.Logprobs[i], entry.Logprob)
					}
					if c.k == 0 {
						continue
					}
					var top []float64
					for _, alternative := range entry.Top {
						top = append(top, alternative.Logprob)
					}
					slices.Sort(top)
					slices.Reverse(top)
					mass, h := 0.0, 0.0
					for _, lp := range top[:c.k] {
						mass += math.Exp(lp)
						h -= math.Exp(lp) * lp
					}
					h -= (1 - mass) * math.Log(1-mass)
					if math.Abs(float64(g.TopKEntropy[i])-h) > 1e-6 {
						t.Fatalf("token %d: entropy %v, want %v", i, g.TopKEntropy[i], h)
					}
				}
			}
		})
	}
}

func TestTopKEntropyWorkedNumbers(t *testing.T) {
	for _, c := range []struct {
		p    []float64
		k    int
		want float64
	}{
		{[]float64{0.5, 0.3}, 2, 1.029653014},
		{[]float64{0.3, 0.5, 0.1}, 2, 1.029653014}, // the sampled token first, exactly k used
		{[]float64{1}, 1, 0},
		{[]float64{1, 0}, 2, 0},
		{[]float64{0.5, 0.5 + 1e-9}, 2, math.Ln2},
		{[]float64{0.6439142598879724, 0.2368828180899036, 0.08714431874203257}, 2, 0.878136652},
	} {
		var lps []float64
		for _, p := range c.p {
			lps = append(lps, max(-9999, math.Log(p)))
		}
		got, err := topKEntropy(lps, c.k)
		if err != nil || math.Abs(got-c.want) > 1e-8 {
			t.Errorf("p %v, k %d: %v (%v), want %v", c.p, c.k, got, err, c.want)
		}
	}
	if _, err := topKEntropy([]float64{-1}, 2); err == nil {
		t.Error("too few log-probabilities were accepted")
	}
}

// respond renders a response with one choice out of its parts.
func respond(index, tokens, content, finish string) string {
	return fmt.Sprintf(`{"prompt_token_ids":[5],"choices":[{"index":%s,"message":{"content":"t"},"finish_reason":%s,"token_ids":%s,"logprobs":{"content":%s}}]}`,
		index, finish, tokens, content)
}

// TestGarbage: what does not fit the request is an error that names the place.
func TestGarbage(t *testing.T) {
	good := `[{"token":"a","logprob":-0.5,"top_logprobs":[]}]`
	for name, c := range map[string]struct{ body, want string }{
		"empty":               {``, "ends where '{'"},
		"null":                {`null`, "'n' where '{'"},
		"text":                {`<html>bad gateway</html>`, "'<' where '{'"},
		"cut":                 {respond("0", "[1]", good, `"stop"`)[:90], "ends"},
		"two values":          {respond("0", "[1]", good, `"stop"`) + "{}", "after the end"},
		"no choices":          {`{"prompt_token_ids":[5]}`, "0 choices"},
		"index -1":            {respond("-1", "[1]", good, `"stop"`), "choice index -1"},
		"index 1":             {respond("1", "[1]", good, `"stop"`), "choice index 1"},
		"index missing":       {`{"choices":[{"finish_reason":"stop"}]}`, "choice index -1"},
		"index of 1.5":        {respond("1.5", "[1]", good, `"stop"`), "no whole number"},
		"more choices":        {`{"choices":[{"index":0},{"index":1}]}`, "more than 1 choices"},
		"negative id":         {respond("0", "[-1]", good, `"stop"`), "token id -1"},
		"huge id":             {respond("0", "[4294967296]", good, `"stop"`), "token id 4294967296"},
		"id of text":          {respond("0", `["a"]`, good, `"stop"`), "no number"},
		"no log-probability":  {respond("0", "[1]", `[{"token":"a"}]`, `"stop"`), "has no log-probability"},
		"NaN":                 {respond("0", "[1]", `[{"logprob":NaN}]`, `"stop"`), "no number"},
		"too big":             {respond("0", "[1]", `[{"logprob":-1e999}]`, `"stop"`), "no finite number"},
		"log-probs null":      {respond("0", "[1]", `null`, `"stop"`), "no log-probabilities"},
		"finish null":         {respond("0", "[1]", good, `null`), `finish reason ""`},
		"finish unknown":      {respond("0", "[1]", good, `"repetition"`), `finish reason "repetition"`},
		"reasoning taken off": {`{"choices":[{"index":0,"finish_reason":"stop","message":{"content":"B","reasoning":"why"}}]}`, "reasoning parser"},
		"deep":                {`{"x":` + strings.Repeat("[", 200), "ends within"},
		"deep choices":        {`{"choices":` + strings.Repeat(`[`, 200), "where '{'"},
	} {
		t.Run(name, func(t *testing.T) {
			parsed, err := parseAnswer([]byte(c.body), rollout.Sampling{Traces: 1, MaxTokens: 4})
			if err == nil {
				_, err = parsed.traces(1)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one about %q", err, c.want)
			}
		})
	}
	if _, err := parseAnswer([]byte(respond("0", "[1]", good, `"stop"`)), rollout.Sampling{Traces: 1, TopLogprobs: 2}); err == nil || !strings.Contains(err.Error(), "0 top log-probabilities") {
		t.Errorf("missing alternatives: %v", err)
	}
}

func TestChoicesInAnyOrder(t *testing.T) {
	body := `{"prompt_token_ids":[5],"choices":[
		{"index":1,"message":{"content":"b"},"finish_reason":"stop","token_ids":[2],"logprobs":{"content":[{"logprob":-2}]}},
		{"index":0,"message":{"content":"a"},"finish_reason":"length","token_ids":[1],"logprobs":{"content":[{"logprob":-1}]}}]}`
	parsed, err := parseAnswer([]byte(body), rollout.Sampling{Traces: 2, MaxTokens: 1})
	if err != nil {
		t.Fatal(err)
	}
	traces, err := parsed.traces(2)
	if err != nil || traces[0].Text != "a" || traces[0].Finish != rollout.FinishLength || traces[1].Logprobs[0] != -2 {
		t.Errorf("%+v, %v", traces, err)
	}
}

func TestScannerText(t *testing.T) {
	for raw, want := range map[string]string{
		`"plain"`: "plain", `"a\"b\\c\/d"`: `a"b\c/d`, `"\b\f\n\r\t"`: "\b\f\n\r\t", `"\u00e9\u4e2d"`: "é中",
		`"\ud83d\ude00"`: "😀", `"\ud83d"`: "\uFFFD", `"\ud83dx"`: "\uFFFDx", `"\ud83d\u0041"`: "\uFFFDA", "\"\xff\"": "\uFFFD", `""`: "",
	} {
		s := scanner{data: []byte(raw)}
		if got := s.text(); got != want || s.err != nil {
			t.Errorf("%s: %q (%v), want %q", raw, got, s.err, want)
		}
	}
	for _, raw := range []string{`"\x"`, `"\u12"`, `"\u12g4"`, `"a`, `"a\`, `"\"`, `a`, ``} {
		s := scanner{data: []byte(raw)}
		if got := s.text(); s.err == nil {
			t.Errorf("%s was read as %q", raw, got)
		}
	}
}

// FuzzParseAnswer: no bytes panic or take memory out of proportion, and what is
// accepted agrees with encoding/json.
func FuzzParseAnswer(f *testing.F) {
	for _, name := range []string{"chat_n4_two_images_T0.7", "chat_top5_T1.0", "chat_finish_stop_biased", "err_unknown_model"} {
		_, body := real(f, name)
		f.Add(body, 4, 0)
		f.Add(body, 1, 4)
	}
	f.Add([]byte(respond("0", "[1]", `[{"logprob":-1}]`, `"stop"`)), 1, 0)
	f.Fuzz(func(t *testing.T, body []byte, n, k int) {
		if n < 0 || n > 16 || k < 0 || k > 32 {
			return
		}
		parsed, err := parseAnswer(body, rollout.Sampling{Traces: n, TopLogprobs: k, MaxTokens: 64})
		if err != nil {
			return
		}
		traces, err := parsed.traces(n)
		if err != nil || !json.Valid(body) {
			return
		}
		for _, trace := range traces {
			for _, lp := range trace.Logprobs {
				if math.IsNaN(float64(lp)) {
					t.Errorf("NaN out of %q", body)
				}
			}
		}
	})
}

// bigResponse is an answer of n traces of tokens tokens with log-probabilities.
func bigResponse(n, tokens, top int) []byte {
	var b strings.Builder
	b.WriteString(`{"id":"x","choices":[`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"index":%d,"message":{"role":"assistant","content":"%s","reasoning":null},"logprobs":{"content":[`, i, strings.Repeat("word ", tokens))
		for j := range tokens {
			if j > 0 {
				b.WriteByte(',')
			}
			b.WriteString(`{"token":" word","logprob":-0.22918415069580078,"bytes":[32,119,111,114,100],"top_logprobs":[`)
			for k := range top {
				if k > 0 {
					b.WriteByte(',')
				}
				fmt.Fprintf(&b, `{"token":" word","logprob":%v,"bytes":[32,119,111,114,100]}`, -0.5-float64(k))
			}
			b.WriteString(`]}`)
		}
		b.WriteString(`]},"finish_reason":"length","stop_reason":null,"token_ids":[`)
		for j := range tokens {
			if j > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, "%d", 1000+j)
		}
		b.WriteString(`]}`)
	}
	b.WriteString(`],"prompt_token_ids":[1,2,3]}`)
	return []byte(b.String())
}

// BenchmarkParse reads 8 traces of 4,096 tokens, without and with alternatives.
func BenchmarkParse(b *testing.B) {
	for name, top := range map[string]int{"logprobs": 0, "top20": 21} {
		body := bigResponse(8, 4096, top)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				parsed, err := parseAnswer(body, rollout.Sampling{Traces: 8, MaxTokens: 4096, TopLogprobs: max(0, top-1)})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := parsed.traces(8); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
