package reward

import (
	"math"
	"testing"
	"unicode/utf8"

	"github.com/uadt-train/uadt-train/rollout"
)

func addAnswers(f *testing.F) {
	for _, c := range readFixture(f).Cases {
		f.Add(c.Block)
	}
	f.Add("\\boxed{\\boxed{\\text{{B}}}")
	f.Add("e*\u0301 \\bo*xed{B}")
	f.Add("((((B")
	f.Add("\u200b<|a|>\xff<|<|b|>|>")
}

// FuzzNormalise: normalisation is idempotent, valid UTF-8, and folding too.
func FuzzNormalise(f *testing.F) {
	addAnswers(f)
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > longestAnswer {
			return
		}
		once := Normalise(text)
		if twice := Normalise(once); twice != once {
			t.Errorf("Normalise(%q) = %q, and again %q", text, once, twice)
		}
		if !utf8.ValidString(once) {
			t.Errorf("Normalise(%q) = %q is not UTF-8", text, once)
		}
		if folded := Fold(text); !utf8.ValidString(folded) {
			t.Errorf("Fold(%q) = %q is not UTF-8", text, folded)
		}
	})
}

// FuzzScore: no response of any kind panics, leaves [0, 1], or is right without
// being worth 1.
func FuzzScore(f *testing.F) {
	fixture := readFixture(f)
	for _, c := range fixture.Cases {
		f.Add(string(c.Kind), fixture.Questions[c.Question], c.Gold, "<think>x</think><answer>"+c.Block+"</answer>")
	}
	f.Fuzz(func(t *testing.T, kind, question, gold, text string) {
		q := rollout.Question{Kind: rollout.Kind(kind), Text: question, Gold: gold}
		trace := rollout.Trace{Text: text}
		for _, a := range []Answer{Strict(q, trace), Lenient(q, trace)} {
			if a.F1 < 0 || a.F1 > 1 || math.IsNaN(a.F1) || a.Reason == "" {
				t.Errorf("%q: %+v", text, a)
			}
			if a.Exact != (a.Reason == CodeRight) || a.Exact && a.F1 != 1 {
				t.Errorf("%q: exact %v with reason %s and F1 %v", text, a.Exact, a.Reason, a.F1)
			}
		}
		if p := Format(trace); p.Value != 0 && p.Value != 1 || p.Reason == "" {
			t.Errorf("%q: format %+v", text, p)
		}
	})
}
