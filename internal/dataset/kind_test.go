package dataset

import (
	"crypto/sha256"
	"encoding/hex"
	"reflect"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
)

func TestParseOptions(t *testing.T) {
	cases := map[string][]Option{
		"What? A. AMD B. glaucoma":                    {{'A', "AMD"}, {'B', "glaucoma"}},
		"What?\nA) a tear\nB) B-scan\nC) none":        {{'A', "a tear"}, {'B', "B-scan"}, {'C', "none"}},
		"What? (A) one (B) two":                       {{'A', "one"}, {'B', "two"}},
		"What? A: yes, B: no":                         {{'A', "yes"}, {'B', "no"}},
		"Which? A、drusen B、scar":                      {{'A', "drusen"}, {'B', "scar"}},
		"A retinal tear is seen. What now?":           nil,
		"Options B. two C. three":                     nil,
		"Only A. one":                                 nil,
		"Patient A. was seen. What? A. x B. y":        {{'A', "x"}, {'B', "y"}},
		"Stage? A. I. mild B. II. severe":             {{'A', "I. mild"}, {'B', "II. severe"}},
		"Is it type A or B? A. type A B. type B C. C": {{'A', "type A"}, {'B', "type B"}, {'C', "C"}},
	}
	for question, want := range cases {
		if got := ParseOptions(question); !reflect.DeepEqual(got, want) {
			t.Errorf("ParseOptions(%q) = %q, want %q", question, got, want)
		}
	}
}

func TestClassify(t *testing.T) {
	const four = "What? A. AMD B. glaucoma C. drusen D. scar"
	cases := []struct {
		question, answer, declared string
		hint                       rollout.Kind
		kind                       rollout.Kind
		gold                       string
	}{
		{four, "B", "", "", rollout.SingleChoice, "B"},
		{four, "B.", "", "", rollout.SingleChoice, "B"},
		{four, "Glaucoma", "", "", rollout.SingleChoice, "B"},
		{four, "C,A", "", "", rollout.MultipleChoice, "A,C"},
		{four, "AC", "", "", rollout.MultipleChoice, "A,C"},
		{four, "A and D", "", "", rollout.MultipleChoice, "A,D"},
		{four, "B", "", rollout.MultipleChoice, rollout.MultipleChoice, "B"},
		{four, "B", "multiple", "", rollout.MultipleChoice, "B"},
		{four, "E", "", "", rollout.Open, "E"},
		{four, "retinal tear", "", "", rollout.Open, "retinal tear"},
		{four, "B", "open", "", rollout.Open, "B"},
		{"What is it?", "AMD", "", "", rollout.Open, "AMD"},
		{"What is it?", "RP", "open", "", rollout.Open, "RP"},
		{"The disc is pale.", "True", "", "", rollout.TrueFalse, "A"},
		{"The disc is pale.", "no", "", "", rollout.TrueFalse, "B"},
		{"Pale? A. True B. False", "B", "", "", rollout.TrueFalse, "B"},
		{"Pale? A. No B. Yes", "yes", "", "", rollout.TrueFalse, "B"},
		{"Pale? A. True B. False", "A", "truefalse", "", rollout.TrueFalse, "A"},
		{"Pale? A. True B. False C. Unsure", "C", "", "", rollout.SingleChoice, "C"},
	}
	for _, c := range cases {
		got := classify(c.question, c.answer, c.declared, c.hint)
		if got.kind != c.kind || got.gold != c.gold {
			t.Errorf("classify(%q, %q, %q, %q) = %s %q, want %s %q", c.question, c.answer, c.declared, c.hint, got.kind, got.gold, c.kind, c.gold)
		}
	}
	if got := classify("The disc is pale.", "True", "", ""); got.question != "The disc is pale. A. True B. False" {
		t.Errorf("a true/false question without options is asked as %q", got.question)
	}
}

// The digests are those of the published texts, computed from the published
// file and not from the constants.
func TestPublishedPromptsByteForByte(t *testing.T) {
	p := OphthaPrompt()
	for name, c := range map[string]struct{ text, want string }{
		"system":   {p.System, "a238244d5f84d1334e123e55d5d2df1a18404365b2addb07c8fe195cd333676b"},
		"multiple": {p.Templates[rollout.MultipleChoice], "ab67f28b6152da9e419e1478cda087d19f1ef5417d5af500e33932fa4399b02b"},
		"single":   {p.Templates[rollout.SingleChoice], "a816f8e9e9ad2ef6925a3377628a0e6e618992c12335845d730f94e7701e2510"},
		"open":     {p.Templates[rollout.Open], "1dc9e395e7e5af492c72ee7946050a036023bc6d21ead290bc1efd7c84067680"},
	} {
		sum := sha256.Sum256([]byte(c.text))
		if got := hex.EncodeToString(sum[:]); got != c.want {
			t.Errorf("%s text has digest %s, want %s", name, got, c.want)
		}
	}
}

func TestMessageOrder(t *testing.T) {
	images := []rollout.Image{{Digest: "a"}, {Digest: "b"}}
	m := OphthaPrompt().Messages(rollout.TrueFalse, "Pale? A. True B. False", images)
	if len(m) != 2 || m[0].Role != "system" || m[1].Role != "user" || len(m[1].Parts) != 3 {
		t.Fatalf("messages = %+v", m)
	}
	if text := m[1].Parts[0].Text; text[:24] != "Pale? A. True B. False. " {
		t.Errorf("text = %q", text)
	}
	if m[1].Parts[1].Image.Digest != "a" || m[1].Parts[2].Image.Digest != "b" {
		t.Errorf("images are out of order: %+v", m[1].Parts)
	}
	first := MicroPrompt().Messages(rollout.Open, "What?", images)[1].Parts
	if first[0].Image == nil || first[2].Text != "What?" {
		t.Errorf("images first: %+v", first)
	}
	if got := (Prompt{}).Messages(rollout.Open, "What?", nil); len(got) != 1 || got[0].Parts[0].Text != "What?" {
		t.Errorf("an empty prompt gives %+v", got)
	}
}
