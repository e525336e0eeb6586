package tokenizer_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/uadt-train/uadt-train/internal/tokenizer"
	"golang.org/x/text/unicode/norm"
	"pgregory.net/rapid"
)

var corpus = slices.Repeat([]string{
	"How many drusen does the photograph show? A. one B. two C. three D. none",
	"<think>I see three drusen in the upper left quadrant.</think><answer>C</answer><|im_end|>",
	"<think>I see two exudates near the macula, so there are two.</think><answer>B</answer><|im_end|>",
}, 8)

func learn(t testing.TB, size int) *tokenizer.Tokenizer {
	t.Helper()
	tok, err := tokenizer.Train(corpus, size)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func id(t testing.TB, tok *tokenizer.Tokenizer, token string) int32 {
	t.Helper()
	v, ok := tok.ID(token)
	if !ok {
		t.Fatalf("no token %q", token)
	}
	return v
}

// spellings are the tokens of ids.
func spellings(tok *tokenizer.Tokenizer, ids []int32) []string {
	var out []string
	for _, v := range ids {
		s, _ := tok.Token(v)
		out = append(out, s)
	}
	return out
}

func TestSplittingIntoWords(t *testing.T) {
	// One token per byte and word-end marks cannot be seen from outside, so words
	// are learnt: with all of them as single tokens the ids show the cuts.
	for text, want := range map[string][]string{
		"I'm here":          {"I", "'m", "Ġhere"},
		"you'll we'Ve it'S": {"you", "'ll", "Ġwe", "'Ve", "Ġit", "'S"},
		"'ſx":               {"'Å¿", "x"},
		"'x":                {"'x"},
		"abc123":            {"abc", "1", "2", "3"},
		"x  y":              {"x", "Ġ", "Ġy"},
		"x   ":              {"x", "ĠĠĠ"},
		"x \n\n  y":         {"x", "ĠĊĊ", "Ġ", "Ġy"},
		"a\r\nb":            {"a", "čĊ", "b"},
		" !?\n\nz":          {"Ġ!?ĊĊ", "z"},
		"\tz":               {"ĉz"},
		"\t!":               {"ĉ", "!"},
		"  !":               {"Ġ", "Ġ!"},
		"(a)(b)":            {"(a", ")(", "b", ")"},
		"a\u00a0b":          {"a", "Âłb"},
		"é½Ⅷ":               {"Ã©", "Â½", "âħ§"},
	} {
		tok, err := tokenizer.Train(slices.Repeat([]string{text}, 3), 512)
		if err != nil {
			t.Fatal(err)
		}
		if got := spellings(tok, tok.Encode(text)); !slices.Equal(got, want) {
			t.Errorf("%q is cut into %q, want %q", text, got, want)
		}
	}
}

func TestFrequentWordsBecomeTokens(t *testing.T) {
	tok := learn(t, 512)
	for _, word := range []string{" drusen", " three", " quadrant", " two", "answer", "think", " the"} {
		if ids := tok.Encode(word); len(ids) != 1 {
			t.Errorf("%q is %q", word, spellings(tok, ids))
		}
	}
	if tok.Size() > 512 {
		t.Errorf("%d tokens", tok.Size())
	}
}

func TestTrainingDependsOnTheCountsOnly(t *testing.T) {
	a := learn(t, 400)
	other := slices.Clone(corpus)
	slices.Reverse(other)
	b, err := tokenizer.Train(other, 400)
	if err != nil {
		t.Fatal(err)
	}
	if a.Digest() != b.Digest() {
		t.Error("the order of the corpus changed the vocabulary")
	}
	if c, err := tokenizer.Train(corpus[1:], 400); err != nil || c.Digest() == a.Digest() {
		t.Errorf("another corpus gave the same vocabulary, %v", err)
	}
	for _, size := range []int{0, 271} {
		if _, err := tokenizer.Train(corpus, size); err == nil {
			t.Errorf("a vocabulary of %d tokens was made", size)
		}
	}
	empty, err := tokenizer.Train(nil, 512)
	if err != nil || empty.Size() != tokenizer.MinVocab() {
		t.Fatalf("without a corpus: %v", err)
	}
	if got := empty.Decode(empty.Encode("眼底 ok"), false); got != "眼底 ok" {
		t.Errorf("bytes only: %q", got)
	}
}

func TestSpecialTokens(t *testing.T) {
	tok := learn(t, 512)
	end, start, call := id(t, tok, "<|im_end|>"), id(t, tok, "<|im_start|>"), id(t, tok, "<tool_call>")
	if got, want := tok.Encode("<|im_start|><tool_call><|im_end|><|im_end"), []int32{start, call, end}; !slices.Equal(got[:3], want) {
		t.Errorf("ids %v begin otherwise than %v", got, want)
	} else if slices.Contains(got[3:], end) {
		t.Error("an unfinished mark became a token")
	}
	if !tok.Special(end) || tok.Special(call) || tok.Special('a') || tok.Special(-1) {
		t.Error("Special is wrong")
	}
	ids := append(append([]int32{start}, tok.Encode("ok")...), call, end)
	if got := tok.Decode(ids, true); got != "ok<tool_call>" {
		t.Errorf("without special tokens: %q", got)
	}
	if got := tok.Decode(ids, false); got != "<|im_start|>ok<tool_call><|im_end|>" {
		t.Errorf("with special tokens: %q", got)
	}
	added := tok.AddedTokens()
	if len(added) != 16 || added[0].Content != tokenizer.EndOfText || added[2].ID != end || added[15].Special {
		t.Errorf("added tokens %v", added)
	}
}

func TestLookups(t *testing.T) {
	tok := learn(t, 512)
	for _, bad := range []int32{-1, int32(tok.Size()), 1 << 30} {
		if s, ok := tok.Token(bad); ok {
			t.Errorf("id %d is %q", bad, s)
		}
		if b, ok := tok.Bytes(bad); ok {
			t.Errorf("id %d has bytes %q", bad, b)
		}
		if got := tok.Decode([]int32{bad}, false); got != "" {
			t.Errorf("id %d decodes to %q", bad, got)
		}
	}
	if b, ok := tok.Bytes(id(t, tok, "Ġdrusen")); !ok || string(b) != " drusen" {
		t.Errorf("bytes %q, %v", b, ok)
	}
	if _, ok := tok.ID("nothing of this kind"); ok {
		t.Error("an unknown token has an id")
	}
	for b := range 256 { // the first 256 ids are the bytes
		if got, ok := tok.Bytes(int32(b)); !ok || string(got) != string([]byte{byte(b)}) {
			t.Errorf("id %d has bytes %q", b, got)
		}
	}
}

func TestDecodingNeverSplitsCharacters(t *testing.T) {
	tok := learn(t, 300)
	d := tok.NewDecoder(false)
	var pieces []string
	for _, b := range []byte("é👩\xe7\x9cz\xff\xe7") {
		pieces = append(pieces, d.Next(int32(b)))
	}
	pieces = append(pieces, d.Flush())
	want := []string{"", "é", "", "", "", "👩", "", "", "\ufffdz", "\ufffd", "", "\ufffd"}
	if !slices.Equal(pieces, want) {
		t.Errorf("pieces %q, want %q", pieces, want)
	}
	if again := d.Flush(); again != "" {
		t.Errorf("flushed twice: %q", again)
	}
}

func TestBrokenUTF8HasOneMarkForEachPrefix(t *testing.T) {
	tok := learn(t, 300)
	// Unicode's table 3-8 and the neighbours of every limit.
	for text, want := range map[string]string{
		"\x61\xf1\x80\x80\xe1\x80\xc2\x62\x80\x63\x80\xbf\x64": "a\ufffd\ufffd\ufffdb\ufffdc\ufffd\ufffdd",
		"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41":                 "\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffdA",
		"\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41":                 "\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffdA",
		"\xf4\x91\x92\x93\xff\x41\x80\xbf\x42":                 "\ufffd\ufffd\ufffd\ufffd\ufffdA\ufffd\ufffdB",
		"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41":                 "\ufffd\ufffd\ufffd\ufffdA",
		"\xf0\x9f\x91":                                         "\ufffd",
		"\ufffd":                                               "\ufffd",
	} {
		var ids []int32
		for _, b := range []byte(text) {
			ids = append(ids, int32(b))
		}
		if got := tok.Decode(ids, false); got != want {
			t.Errorf("%x decodes to %q, want %q", text, got, want)
		}
	}
}

func TestNormalForm(t *testing.T) {
	tok := learn(t, 300)
	for text, want := range map[string]string{
		"e\u0301":              "é",
		"a\u0323\u0301":        "ạ́",
		"\u212b\u2126":         "ÅΩ",
		"\u1100\u1161":         "가",
		"a\u0301\u0897x":       "á\u0897x",      // newer than the reference's tables
		"a\u0897\u0301":        "a\u0897\u0301", // so nothing composes across it
		"\U00011935\U00011930": "\U00011935\U00011930",
		"bad\xffbyte":          "bad\ufffdbyte",
		"":                     "",
	} {
		if got := tok.Decode(tok.Encode(text), false); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
	// split.go and normalize.go agree with the reference for these tables; with
	// later ones tests/python must pass again before this line is changed.
	if unicode.Version != "15.0.0" {
		t.Errorf("Go's Unicode tables are of version %s", unicode.Version)
	}
}

func TestRoundTrip(t *testing.T) {
	tok := learn(t, 400)
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "text")
		ids := tok.Encode(text)
		got := tok.Decode(ids, false)
		if norm.NFC.String(got) != norm.NFC.String(text) {
			t.Fatalf("%q became %q", text, got)
		}
		if !slices.Equal(tok.Encode(got), ids) {
			t.Fatalf("%q has other ids after a round trip", text)
		}
		d := tok.NewDecoder(false)
		var pieces strings.Builder
		for _, v := range ids {
			piece := d.Next(v)
			if !utf8.ValidString(piece) {
				t.Fatalf("piece %q of %q", piece, text)
			}
			pieces.WriteString(piece)
		}
		if pieces.WriteString(d.Flush()); pieces.String() != got {
			t.Fatalf("pieces %q, whole %q", pieces.String(), got)
		}
	})
}

func TestLongWordsAreMergedAsShortOnes(t *testing.T) {
	tok := learn(t, 512)
	rapid.Check(t, func(t *rapid.T) {
		// Words around the length where the algorithm changes, of letters that merge.
		n := rapid.IntRange(30, 70).Draw(t, "n")
		word := rapid.StringOfN(rapid.RuneFrom([]rune("drusenthqa")), n, n, -1).Draw(t, "word")
		if got, want := tok.Encode(word), slow(tok, word); !slices.Equal(got, want) {
			t.Fatalf("%q: %q, want %q", word, spellings(tok, got), spellings(tok, want))
		}
	})
	// A word of a hundred thousand letters takes no quadratic time and loses nothing.
	long := strings.Repeat("quadrantheren", 8_000)
	ids := tok.Encode(long)
	if tok.Decode(ids, false) != long || len(ids) >= len(long) {
		t.Errorf("%d letters became %d tokens", len(long), len(ids))
	}
}

// slow merges by the definition: the ids of merged tokens rise with their rank,
// so the pair whose join has the smallest id goes first, leftmost first.
func slow(tok *tokenizer.Tokenizer, word string) []int32 {
	parts := strings.Split(word, "")
	for {
		best, at := int32(-1), -1
		for i := 0; i+1 < len(parts); i++ {
			if v, ok := tok.ID(parts[i] + parts[i+1]); ok && (at < 0 || v < best) && tok.Joins(parts[i], parts[i+1]) {
				best, at = v, i
			}
		}
		if at < 0 {
			break
		}
		parts = slices.Replace(parts, at, at+2, parts[at]+parts[at+1])
	}
	var ids []int32
	for _, p := range parts {
		v, _ := tok.ID(p)
		ids = append(ids, v)
	}
	return ids
}

func TestFilesReadBack(t *testing.T) {
	tok := learn(t, 400)
	files, err := tok.Files(1024)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	back, err := tokenizer.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if back.Digest() != tok.Digest() || back.Size() != tok.Size() {
		t.Error("another tokenizer came back")
	}
	if template, err := tokenizer.OpenTemplate(dir); err != nil || template.Name() == "" {
		t.Errorf("template %q, %v", template.Name(), err)
	}
	merges := strings.Count(string(files["merges.txt"]), "\n") - 1
	if want := tok.Size() - tokenizer.MinVocab(); merges != want {
		t.Errorf("merges.txt has %d merges, want %d", merges, want)
	}
	if _, err := tokenizer.Open(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty directory gave %v", err)
	}
}
