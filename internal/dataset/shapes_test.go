package dataset

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/rollout"
)

func TestStringsTakesEveryForm(t *testing.T) {
	for text, want := range map[string]Strings{
		`"a"`: {"a"}, `["a","b"]`: {"a", "b"}, `[]`: {}, `null`: nil, ` "x\ny" `: {"x\ny"},
	} {
		var got Strings
		if err := json.Unmarshal([]byte(text), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s = %q, %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{`5`, `{}`, `["a",1]`, `true`} {
		var got Strings
		if err := json.Unmarshal([]byte(text), &got); err == nil {
			t.Errorf("%s was taken as %q", text, got)
		}
	}
}

func TestOmniMedVQARecords(t *testing.T) {
	cases := []struct{ record, question, answer string }{
		{`{"question":"What?","gt_answer":"scar","option_A":"AMD","option_B":"scar"}`, "What?\nA. AMD\nB. scar", "scar"},
		{`{"question":"How many?","gt_answer":"2","option_A":1,"option_B":2,"option_C":null}`, "How many?\nA. 1\nB. 2", "2"},
		{`{"question":"Open?","gt_answer":"glaucoma"}`, "Open?", "glaucoma"},
		{`{"question":"Which?","answer":"B","option_A":"x","option_B":"y","option_C":"","option_D":"z"}`, "Which?\nA. x\nB. y", "B"},
		{`{"question":"Empty?","gt_answer":""}`, "Empty?", ""},
	}
	for _, c := range cases {
		rec, err := parseJSONRecord([]byte(c.record))
		if err != nil {
			t.Fatalf("%s: %v", c.record, err)
		}
		if want := qa(c.question, c.answer); !reflect.DeepEqual(rec.Conversations, want) {
			t.Errorf("%s\ngives %q, want %q", c.record, rec.Conversations, want)
		}
	}
	rec, err := parseJSONRecord([]byte(`{"question_id":"q7","question":"?","gt_answer":"x","image_path":"a/b.png","modality_type":"OCT"}`))
	if err != nil || rec.ID != "q7" || rec.Modality != "OCT" || !reflect.DeepEqual(rec.Image, Strings{"a/b.png"}) {
		t.Errorf("record = %+v, %v", rec, err)
	}
	for text, want := range map[string]error{
		`{"question":"What?"}`: ErrFields, `[1]`: ErrFormat, `"x"`: ErrFormat, ``: ErrFormat,
		`{"conversations":{}}`: ErrFormat, `{"question":5}`: ErrFormat,
	} {
		if _, err := parseJSONRecord([]byte(text)); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", text, err, want)
		}
	}
}

func TestRowsOfTables(t *testing.T) {
	rec, err := rowRecord(map[string]string{
		"index": "3", "question": "Which?", "hint": "A 60-year-old.", "a": "x", "b": "y", "c": "", "answer": "B", "image": "i.png"})
	if err != nil || rec.ID != "3" || rec.Conversations[0].Value != "A 60-year-old.\nWhich?\nA. x\nB. y" || rec.Image[0] != "i.png" {
		t.Errorf("record = %+v, %v", rec, err)
	}
	caption, err := rowRecord(map[string]string{"caption": "a disc", "base64": "QUJD", "image": "name"})
	if err != nil || caption.Caption != "a disc" || caption.Image[0] != "QUJD" {
		t.Errorf("caption = %+v, %v", caption, err)
	}
	if _, err := rowRecord(map[string]string{"answer": "B"}); !errors.Is(err, ErrFields) {
		t.Errorf("no question: %v", err)
	}
	for value, want := range map[string]Strings{
		"": nil, " ": nil, "a.png": {"a.png"}, `["a","b"]`: {"a", "b"}, "['a', 'b']": {"a", "b"}, "[broken": {"[broken"}, "[a]": {"[a]"},
	} {
		if got := cellImages(map[string]string{"image": value}); !reflect.DeepEqual(got, want) {
			t.Errorf("cell %q = %q, want %q", value, got, want)
		}
	}
	if got := cellImages(map[string]string{"image_path": "p.png"}); !reflect.DeepEqual(got, Strings{"p.png"}) {
		t.Errorf("image_path gives %q", got)
	}
}

func TestSplitOfARecord(t *testing.T) {
	cases := []struct {
		turns []Turn
		want  string // part of the error; empty for none
	}{
		{qa("q", "a"), ""},
		{[]Turn{{"user", "q"}, {"assistant", "a"}}, ""},
		{qa("<image>\n<image> q", "a"), ""},
		{qa("<image>", "a"), "question is empty"},
		{qa("q", "\n"), "answer is empty"},
		{[]Turn{{"human", "q"}}, "1 human and 0 gpt"},
		{[]Turn{{"human", "q"}, {"gpt", "a"}, {"human", "q"}, {"gpt", "a"}}, "2 human and 2 gpt"},
		{[]Turn{{"system", "s"}, {"human", "q"}, {"gpt", "a"}}, `"system"`},
	}
	for _, c := range cases {
		question, answer, caption, err := Record{Conversations: c.turns}.split()
		if c.want == "" {
			if err != nil || question != "q" || answer != "a" || caption {
				t.Errorf("%v: %q, %q, %v, %v", c.turns, question, answer, caption, err)
			}
			continue
		}
		if !errors.Is(err, ErrFields) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.turns, err, c.want)
		}
	}
	if _, _, _, err := (Record{}).split(); !errors.Is(err, ErrFields) {
		t.Errorf("an empty record: %v", err)
	}
}

// word is free text without capitals or marks that could open an option.
func word(t *rapid.T, label string) string {
	return rapid.StringMatching(`[a-z]{2,8}( [a-z]{2,8}){0,2}`).Draw(t, label)
}

// Options written in any of the usual ways are read back, and their letters
// and texts classify alike.
func TestOptionsAreReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 6).Draw(t, "n")
		mark := rapid.SampledFrom([]string{"%. ", "%) ", "%: ", "(%) "}).Draw(t, "mark")
		between := rapid.SampledFrom([]string{" ", "\n", "; ", ", "}).Draw(t, "between")
		question, texts, seen := word(t, "question")+"?", make([]string, n), map[string]bool{}
		for i := range texts {
			texts[i] = word(t, "option")
			if seen[texts[i]] || truthWord(texts[i]) != 0 {
				t.Skip("options repeat or are true/false")
			}
			seen[texts[i]] = true
			question += between + strings.ReplaceAll(mark, "%", string(rune('A'+i))) + texts[i]
		}
		options := ParseOptions(question)
		if len(options) != n {
			t.Fatalf("%q has %d options, want %d", question, len(options), n)
		}
		for i, o := range options {
			if o.Letter != byte('A'+i) || o.Text != texts[i] {
				t.Errorf("%q: option %d is %c %q, want %q", question, i, o.Letter, o.Text, texts[i])
			}
		}
		k := rapid.IntRange(0, n-1).Draw(t, "answer")
		gold := string(rune('A' + k))
		for _, answer := range []string{gold, gold + ".", texts[k], strings.ToUpper(texts[k][:1]) + texts[k][1:]} {
			if got := classify(question, answer, "", ""); got.kind != rollout.SingleChoice || got.gold != gold {
				t.Errorf("classify(%q, %q) = %s %q, want single %q", question, answer, got.kind, got.gold, gold)
			}
		}
	})
}

// A set of letters reads the same in every order and with every separator.
func TestLetterSetsReadAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		letters := rapid.Permutation([]string{"A", "B", "C", "D", "E"}).Draw(t, "letters")[:rapid.IntRange(1, 5).Draw(t, "n")]
		separator := rapid.SampledFrom([]string{"", ",", ", ", ";", " ", " and ", "、"}).Draw(t, "separator")
		got, ok := letterSet(strings.Join(letters, separator))
		if !ok || len(got) != len(letters) {
			t.Fatalf("%q with %q: %q, %v", letters, separator, got, ok)
		}
		for i := 1; i < len(got); i++ {
			if got[i] <= got[i-1] {
				t.Errorf("letters %q are not sorted", got)
			}
		}
	})
	for _, text := range []string{"", "a", "A,A", "AMD", "A retinal tear", "A,", ",A", "A or B", "1", "AB C D A"} {
		if got, ok := letterSet(text); ok && text != "AMD" {
			t.Errorf("%q was taken as %q", text, got)
		}
	}
}

// "AMD" looks like three letters; with options it is no set, because M is none.
func TestAbbreviationsAreNoLetters(t *testing.T) {
	got := classify("What is it? A. drusen B. scar", "AMD", "", "")
	if got.kind != rollout.Open || got.gold != "AMD" {
		t.Errorf("classify = %s %q, want open AMD", got.kind, got.gold)
	}
	if got := classify("What is it?", "AMD", "", ""); got.kind != rollout.Open || got.gold != "AMD" {
		t.Errorf("without options: %s %q", got.kind, got.gold)
	}
}
