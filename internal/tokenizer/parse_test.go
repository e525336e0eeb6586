package tokenizer_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

// file is the tokenizer.json of a small vocabulary, decoded for changing.
func file(t testing.TB) (data []byte, tree map[string]any) {
	t.Helper()
	files, err := learn(t, 300).Files(64)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(files[tokenizer.File], &tree); err != nil {
		t.Fatal(err)
	}
	return files[tokenizer.File], tree
}

func TestOtherTokenizersAreRefused(t *testing.T) {
	at := func(tree map[string]any, keys ...string) map[string]any {
		for _, k := range keys {
			tree = tree[k].(map[string]any)
		}
		return tree
	}
	added := func(tree map[string]any, i int) map[string]any {
		return tree["added_tokens"].([]any)[i].(map[string]any)
	}
	for name, test := range map[string]struct {
		change      func(map[string]any)
		unsupported bool
		want        string
	}{
		"another normaliser": {func(m map[string]any) { at(m, "normalizer")["type"] = "NFKC" }, true, "normalizer is not NFC"},
		"no normaliser":      {func(m map[string]any) { m["normalizer"] = nil }, true, "normalizer is not NFC"},
		"another pattern": {func(m map[string]any) {
			split := at(m, "pre_tokenizer")["pretokenizers"].([]any)[0].(map[string]any)
			at(split, "pattern")["Regex"] = `\p{N}{1,3}`
		}, true, "pre_tokenizer"},
		"no pre-tokeniser":  {func(m map[string]any) { delete(m, "pre_tokenizer") }, true, "pre_tokenizer"},
		"a template behind": {func(m map[string]any) { at(m, "post_processor")["type"] = "TemplateProcessing" }, true, "post_processor"},
		"another decoder":   {func(m map[string]any) { m["decoder"] = nil }, true, "decoder"},
		"truncation":        {func(m map[string]any) { m["truncation"] = map[string]any{"max_length": 3} }, true, "truncation"},
		"padding":           {func(m map[string]any) { m["padding"] = map[string]any{} }, true, "padding"},
		"unigram":           {func(m map[string]any) { at(m, "model")["type"] = "Unigram" }, true, "model is Unigram"},
		"dropout":           {func(m map[string]any) { at(m, "model")["dropout"] = 0.1 }, true, "dropout"},
		"unknown token":     {func(m map[string]any) { at(m, "model")["unk_token"] = "a" }, true, "unk_token"},
		"word prefix":       {func(m map[string]any) { at(m, "model")["continuing_subword_prefix"] = "##" }, true, "prefix"},
		"word suffix":       {func(m map[string]any) { at(m, "model")["end_of_word_suffix"] = "</w>" }, true, "suffix"},
		"byte fallback":     {func(m map[string]any) { at(m, "model")["byte_fallback"] = true }, true, "byte_fallback"},
		"stripping token":   {func(m map[string]any) { added(m, 1)["lstrip"] = true }, true, "<|im_start|>"},
		"negative id":       {func(m map[string]any) { at(m, "model", "vocab")["!"] = -1 }, false, "id -1"},
		"huge id":           {func(m map[string]any) { at(m, "model", "vocab")["!"] = 1 << 30 }, false, "id 1073741824"},
		"id taken":          {func(m map[string]any) { at(m, "model", "vocab")["!"] = 34 }, false, "same id 34"},
		"added id taken":    {func(m map[string]any) { added(m, 0)["id"] = 34 }, false, "same id 34"},
		"added twice":       {func(m map[string]any) { added(m, 0)["content"] = "<|im_end|>" }, false, "has the ids"},
		"added empty":       {func(m map[string]any) { added(m, 0)["content"] = "" }, false, "is empty"},
		"merge outside":     {func(m map[string]any) { at(m, "model")["merges"] = []any{"q z"} }, false, "outside the vocabulary"},
		"merge of three":    {func(m map[string]any) { at(m, "model")["merges"] = []any{"a b c"} }, false, "does not name two tokens"},
		"merge of one":      {func(m map[string]any) { at(m, "model")["merges"] = []any{[]any{"a"}} }, false, "does not name two tokens"},
		"vocab is a list":   {func(m map[string]any) { at(m, "model")["vocab"] = []any{} }, false, "reading tokenizer.json"},
	} {
		_, tree := file(t)
		test.change(tree)
		data, err := json.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tokenizer.Load(data)
		if err == nil || errors.Is(err, tokenizer.ErrUnsupported) != test.unsupported || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOldAndNewMergesReadAlike(t *testing.T) {
	data, tree := file(t)
	model := tree["model"].(map[string]any)
	merges := model["merges"].([]any)
	for i, m := range merges {
		two := m.([]any)
		merges[i] = two[0].(string) + " " + two[1].(string)
	}
	old, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	a, err := tokenizer.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	b, err := tokenizer.Load(old)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(corpus, "\n")
	if !slices.Equal(a.Encode(text), b.Encode(text)) {
		t.Error("other ids")
	}
}

func TestIgnoreMergesTakesWholeWords(t *testing.T) {
	_, tree := file(t)
	model := tree["model"].(map[string]any)
	model["merges"], model["ignore_merges"] = []any{}, true
	data, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	if got := tok.Encode("re<|im_end|>"); len(got) > 3 {
		t.Errorf("ids %v", got)
	}
	whole := ""
	for v := range int32(tok.Size()) {
		if b, ok := tok.Bytes(v); ok && len(b) > 1 && b[0] == ' ' && !tok.Special(v) {
			whole = string(b)
		}
	}
	if got := tok.Encode(whole); len(got) != 1 {
		t.Errorf("%q has the ids %v", whole, got)
	}
}

func TestNormalizedAddedTokens(t *testing.T) {
	_, tree := file(t)
	tree["added_tokens"] = append(tree["added_tokens"].([]any),
		map[string]any{"id": 299 + 1, "content": "é!", "normalized": true, "special": false})
	data, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	// It is found in the normal form of the text, not only where it stands so.
	if got := tok.Encode("e\u0301!é!"); !slices.Equal(got, []int32{300, 300}) {
		t.Errorf("ids %v", got)
	}
}

// FuzzLoad reads any bytes: an error, or a tokenizer whose tables agree.
func FuzzLoad(f *testing.F) {
	data, _ := file(f)
	f.Add(data)
	f.Add(data[:len(data)/2])
	f.Add([]byte(`{"normalizer":{"type":"NFC"},"decoder":{"type":"ByteLevel"},"model":{"vocab":{"a":0}}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		tok, err := tokenizer.Load(data)
		if err != nil {
			return
		}
		for v := range int32(tok.Size()) {
			if s, ok := tok.Token(v); ok {
				if back, ok := tok.ID(s); !ok || back != v {
					t.Fatalf("token %d %q has the id %d", v, s, back)
				}
			}
		}
		tok.Encode("a b<|im_end|> drusen 12")
	})
}

// FuzzEncode encodes and decodes any text.
func FuzzEncode(f *testing.F) {
	tok := learn(f, 400)
	for _, s := range []string{"", "I'll see 3 drusen.\r\n\n  <|im_end|>", "\xff\xfe", "e\u0301\u0323\u0897", "  \u00a0\u3000x", "'S'\u017f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ids := tok.Encode(s)
		text := tok.Decode(ids, false)
		if !utf8.ValidString(text) {
			t.Fatalf("%q decoded to %q", s, text)
		}
		if again := tok.Encode(text); !slices.Equal(again, ids) {
			t.Fatalf("%q: %v, then %v", s, ids, again)
		}
		tok.Decode(ids, true)
	})
}

// FuzzDecode decodes any ids, in one go and as a stream.
func FuzzDecode(f *testing.F) {
	tok := learn(f, 400)
	f.Add([]byte{0xe7, 0x9c, 0xbc, 0xff, 0xf0, 0x9f}, true)
	f.Fuzz(func(t *testing.T, raw []byte, skip bool) {
		ids := make([]int32, len(raw))
		for i, b := range raw {
			ids[i] = int32(b)
			if i%5 == 4 {
				ids[i] += 256
			}
		}
		d, text := tok.NewDecoder(skip), ""
		for _, v := range ids {
			piece := d.Next(v)
			if !utf8.ValidString(piece) {
				t.Fatalf("piece %q", piece)
			}
			text += piece
		}
		if text += d.Flush(); text != tok.Decode(ids, skip) {
			t.Fatalf("stream %q, whole %q", text, tok.Decode(ids, skip))
		}
	})
}
