package reward

import (
	"strings"
)

// compareOpen compares an open answer with the gold name. A match is equality
// after folding and synonyms; because the whole answer must be equal, a
// negation, a hedge or a list can only match a gold answer that says the same.
// Where there is no match these three are worth nothing, token F1 included: it
// would pay for naming everything.
func compareOpen(table *synonymTable, goldText, text string) Answer {
	a := Answer{Extracted: text}
	if Fold(goldText) == "" {
		a.Reason = CodeNoGold
		return a
	}
	if Fold(text) == "" {
		a.Reason = CodeNoAnswer
		return a
	}
	gold, answer := table.canonical(goldText), table.canonical(text)
	asked := strings.Contains(text, "?") && !strings.Contains(goldText, "?") // folding loses it
	if gold.equal(answer) && !asked {
		a.Reason, a.Exact, a.F1 = CodeRight, true, 1
		return a
	}
	switch {
	case negated(text):
		a.Reason = CodeNegated
	case hedged(text):
		a.Reason = CodeHedged
	case listed(text):
		a.Reason = CodeListed
	default:
		a.F1 = tokenF1(gold.key, answer.key)
		switch {
		case answer.ambiguous:
			a.Reason = CodeAmbiguous
		case a.F1 > 0:
			a.Reason = CodePartial
		default:
			a.Reason = CodeWrong
		}
	}
	return a
}

// tokenF1 is 2*common/(len(gold)+len(answer)) over the multisets of tokens of
// two folded texts, the harmonic mean of precision and recall.
func tokenF1(gold, answer string) float64 {
	want, got := Tokens(gold), Tokens(answer)
	if len(want)+len(got) == 0 {
		return 0
	}
	left := make(map[string]int, len(want))
	for _, t := range want {
		left[t]++
	}
	common := 0
	for _, t := range got {
		if left[t] > 0 {
			left[t]--
			common++
		}
	}
	return 2 * float64(common) / float64(len(want)+len(got))
}

// name is a diagnosis in comparable form.
type name struct {
	key       string   // folded, abbreviations expanded, spelling unified
	concepts  []string // main names of what it may mean; key itself when unknown
	ambiguous bool     // an ambiguous abbreviation stands within a longer name
}

// equal says whether n and m name the same thing.
func (n name) equal(m name) bool {
	for _, c := range n.concepts {
		for _, d := range m.concepts {
			if c == d {
				return true
			}
		}
	}
	return false
}

// splitParenthetical cuts a trailing "(...)" off normalised text.
func splitParenthetical(text string) (before, inside string, ok bool) {
	text = strings.TrimSpace(text)
	if !strings.HasSuffix(text, ")") {
		return text, "", false
	}
	open := strings.LastIndexByte(text, '(')
	if open <= 0 {
		return text, "", false
	}
	return strings.TrimSpace(text[:open]), text[open+1 : len(text)-1], true
}
