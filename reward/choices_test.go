package reward

import (
	"reflect"
	"testing"
)

func TestChoices(t *testing.T) {
	abc := []Choice{{'A', "one"}, {'B', "two"}, {'C', "three"}}
	for name, c := range map[string]struct {
		question string
		want     []Choice
	}{
		"dot, lines":            {"What?\nA. one\nB. two\nC. three", abc},
		"dot, line":             {"What? A. one B. two C. three", abc},
		"dot, no blanks":        {"What?\nA.one\nB.two\nC.three", abc},
		"parenthesis":           {"What? A) one B) two C) three", abc},
		"both parentheses":      {"What? (A) one (B) two (C) three", abc},
		"colon":                 {"What? A: one B: two C: three", abc},
		"chinese comma":         {"什么？A、one B、two C、three", abc},
		"full width":            {"What？Ａ．one Ｂ．two Ｃ．three", abc},
		"full-width colon":      {"What？A：one B：two C：three", abc},
		"commas between":        {"What? A. one, B. two, C. three", abc},
		"semicolons":            {"What? A. one; B. two; C. three", abc},
		"windows lines":         {"What?\r\nA. one\r\nB. two\r\nC. three\r\n", abc},
		"instruction after":     {"What?\nA. one\nB. two\nC. three\nAnswer with a letter.", abc},
		"blank line between":    {"What?\n\nA. one\n\nB. two\n\nC. three", abc},
		"stray A before":        {"He took vitamin A. What? A. one B. two C. three", abc},
		"stray A and B before":  {"Vitamin A. and hepatitis B. What? A. one B. two C. three", abc},
		"two":                   {"A. True B. False", []Choice{{'A', "True"}, {'B', "False"}}},
		"option of two lines":   {"What?\nA. one\nand more\nB. two", []Choice{{'A', "one\nand more"}, {'B', "two"}}},
		"none":                  {"What is it?", nil},
		"only one":              {"What? A. one", nil},
		"gap":                   {"What? A. one C. three", nil},
		"no A":                  {"What? B. one C. three", nil},
		"mixed styles":          {"What? A. one B) two", nil},
		"lower case":            {"What? a. one b. two", nil},
		"letters within words":  {"RNA. and DNA. and HLA-B. are not options", nil},
		"empty":                 {"", nil},
		"invalid utf-8":         {"\xff A. one B. two", []Choice{{'A', "one"}, {'B', "two"}}},
		"empty option":          {"A. B. two", []Choice{{'A', ""}, {'B', "two"}}},
		"abbreviation and list": {"OCT B. scan shown. What? (A) one (B) two", []Choice{{'A', "one"}, {'B', "two"}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Choices(c.question); !reflect.DeepEqual(got, c.want) {
				t.Errorf("Choices(%q) = %q, want %q", c.question, got, c.want)
			}
		})
	}
}
