package reward

import (
	"strings"

	"github.com/uadt-train/uadt-train/rollout"
)

// Strict finds and compares the answer of a trace as the reward does: from the
// single <answer> block, and from nothing else. A truncated or aborted trace
// has none.
func Strict(q rollout.Question, t rollout.Trace) Answer {
	switch t.Finish {
	case rollout.FinishAbort:
		return Answer{Reason: CodeAborted}
	case rollout.FinishLength:
		return Answer{Reason: CodeTruncated}
	}
	opens, closes := strings.Count(t.Text, answerOpen), strings.Count(t.Text, answerClose)
	if opens > 1 || closes > 1 {
		return Answer{Reason: CodeSeveralAnswers}
	}
	_, rest, opened := strings.Cut(t.Text, answerOpen)
	block, _, closed := strings.Cut(rest, answerClose)
	if !opened || !closed {
		return Answer{Reason: CodeNoAnswer}
	}
	return Compare(q, block)
}

// Compare compares the content of an answer block with the gold answer of q.
func Compare(q rollout.Question, block string) Answer {
	if strings.TrimSpace(block) == "" {
		return Answer{Reason: CodeNoAnswer}
	}
	if len(block) > longestAnswer {
		return Answer{Reason: CodeTooLong}
	}
	text := Normalise(block)
	if text == "" {
		return Answer{Reason: CodeNoAnswer}
	}
	switch q.Kind {
	case rollout.SingleChoice, rollout.TrueFalse, rollout.MultipleChoice:
		return compareChoice(q, text)
	}
	a := compareOpen(builtinSynonyms(), q.Gold, text)
	if a.F1 > 0 && !a.Exact && itemLines(block) > 1 {
		a.Reason, a.F1 = CodeListed, 0 // Normalise has joined the lines of a list
	}
	return a
}

// itemLines counts the lines that say something.
func itemLines(block string) int {
	n := 0
	for line := range strings.Lines(block) {
		if Normalise(line) != "" {
			n++
		}
	}
	return n
}
