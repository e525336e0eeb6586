package main

import (
	"testing"

	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

func TestThinkSpanFindsTheTokensBetweenTheTags(t *testing.T) {
	words, err := tokenizer.Train([]string{"scan the upper left, drusen", "<think>", "</think><answer>"}, tokenizer.MinVocab()+40)
	if err != nil {
		t.Fatal(err)
	}
	span := thinkSpan(words)
	for _, tt := range []struct{ text, want string }{
		{"<think>scan the upper left</think><answer>B</answer>", "scan the upper left"},
		{"<think>no end", "no end"},
		{"no tags at all", ""},
		{"<think></think><answer>B</answer>", ""},
		{"before <think>in</think> after <think>again</think>", "in"},
		{"</think> only the end", ""},
		{"", ""},
	} {
		tokens := words.Encode(tt.text)
		from, to := span(tokens)
		if from < 0 || to < from || to > len(tokens) {
			t.Fatalf("%q: span [%d, %d) of %d tokens", tt.text, from, to, len(tokens))
		}
		// A token that holds the end of a tag and the beginning of the text is left
		// out, so the span may lose text at its borders but never gain any.
		got := words.Decode(tokens[from:to], false)
		if len(got) > len(tt.want) || (tt.want == "") != (got == "") {
			t.Errorf("%q: span holds %q, want %q", tt.text, got, tt.want)
		}
	}
}
