package tokenizer_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

// TestSlowFilesAreTheSameTokenizer gives the old files that Files writes back to
// FromSlow: the tokenizer must be the one they were written from.
func TestSlowFilesAreTheSameTokenizer(t *testing.T) {
	want := learn(t, 340)
	files, err := want.Files(100)
	if err != nil {
		t.Fatal(err)
	}
	data, err := tokenizer.FromSlow(files["vocab.json"], files["merges.txt"], want.AddedTokens())
	if err != nil {
		t.Fatal(err)
	}
	if string(data) != string(files["tokenizer.json"]) {
		t.Error("another tokenizer.json")
	}
	crlf := strings.ReplaceAll(string(files["merges.txt"]), "\n", "\r\n") + "\r\n"
	if again, err := tokenizer.FromSlow(files["vocab.json"], []byte(crlf), want.AddedTokens()); err != nil || string(again) != string(data) {
		t.Errorf("line ends of another system change it (%v)", err)
	}
}

// TestMergesOfHashes checks that only the first line can be a version.
func TestMergesOfHashes(t *testing.T) {
	data, err := tokenizer.FromSlow([]byte(`{"#":0,"##":1,"#version":2,"#version:":3,":":4}`), []byte("# #\n#version :\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	if got := spellings(tok, tok.Encode("##")); !slices.Equal(got, []string{"##"}) {
		t.Errorf("encoded to %q", got)
	}
}

func TestBadSlowFiles(t *testing.T) {
	const vocab, merges = `{"a":0,"b":1,"ab":2}`, "a b\n"
	for name, c := range map[string]struct {
		vocab, merges string
		added         []tokenizer.Added
		want          string
	}{
		"no object":       {"[]", merges, nil, "vocab.json"},
		"null":            {"null", merges, nil, "names no token"},
		"one word":        {vocab, "#version: 0.2\nab\n", nil, "line 2"},
		"three words":     {vocab, "a b c\n", nil, "line 1"},
		"foreign":         {vocab, "a c\n", nil, "outside the vocabulary"},
		"an id twice":     {vocab, merges, []tokenizer.Added{{ID: 1, Content: "<x>"}}, "same id 1"},
		"a token twice":   {vocab, merges, []tokenizer.Added{{ID: 3, Content: "ab"}}, "ids"},
		"an empty token":  {vocab, merges, []tokenizer.Added{{ID: 3}}, "empty"},
		"a negative id":   {vocab, merges, []tokenizer.Added{{ID: -3, Content: "<x>"}}, "-3"},
		"an endless line": {vocab, strings.Repeat("a", 1<<17), nil, "merges.txt"},
	} {
		_, err := tokenizer.FromSlow([]byte(c.vocab), []byte(c.merges), c.added)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want %q", name, err, c.want)
		}
	}
}

func TestExtend(t *testing.T) {
	before := learn(t, 340)
	files, err := before.Files(100)
	if err != nil {
		t.Fatal(err)
	}
	data, err := tokenizer.Extend(files["tokenizer.json"], tokenizer.Added{ID: int32(before.Size()), Content: "<video>", Special: true})
	if err != nil {
		t.Fatal(err)
	}
	after, err := tokenizer.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	const text = "How many drusen<|im_end|>"
	if got, want := after.Encode(text+"<video>"), append(before.Encode(text), int32(before.Size())); !slices.Equal(got, want) {
		t.Errorf("encoded to %v, want %v", got, want)
	}
	if _, err := tokenizer.Extend([]byte(`{"model":{"type":"Unigram"}}`)); !errors.Is(err, tokenizer.ErrUnsupported) {
		t.Errorf("error is %v", err)
	}
}

func FuzzFromSlow(f *testing.F) {
	f.Add([]byte(`{"a":0,"b":1,"ab":2}`), []byte("#version: 0.2\na b\n"), int32(3), "<x>")
	f.Add([]byte(`{"a":1048577}`), []byte(""), int32(0), "")
	f.Add([]byte(`{"a":-1}`), []byte(" "), int32(-1), "a")
	f.Fuzz(func(t *testing.T, vocab, merges []byte, id int32, content string) {
		data, err := tokenizer.FromSlow(vocab, merges, []tokenizer.Added{{ID: id, Content: content}})
		if err != nil {
			return
		}
		tok, err := tokenizer.Load(data)
		if err != nil {
			t.Fatalf("what was made cannot be read: %v", err)
		}
		tok.Encode("ab" + content)
	})
}
