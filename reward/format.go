package reward

import (
	"strings"

	"github.com/uadt-train/uadt-train/rollout"
)

const (
	thinkOpen, thinkClose   = "<think>", "</think>"
	answerOpen, answerClose = "<answer>", "</answer>"
)

// Format scores the form of a trace: 1 for exactly one <think>...</think>
// followed by exactly one <answer>...</answer> (tags exact and lower case),
// neither empty, no tag inside a block, and nothing but white space outside
// them; else 0 with the first reason that applies. A truncated trace gets 0, an
// aborted one is missing.
func Format(t rollout.Trace) Part {
	p := Part{Name: FormatPart}
	switch t.Finish {
	case rollout.FinishAbort:
		p.Missing, p.Reason = true, CodeAborted
	case rollout.FinishLength:
		p.Reason = CodeTruncated
	default:
		if p.Reason = formatOf(t.Text); p.Reason == CodeFormatted {
			p.Value = 1
		}
	}
	return p
}

// formatOf names what is wrong with the form of text, or CodeFormatted.
func formatOf(text string) Code {
	thinks, thinkEnds := strings.Count(text, thinkOpen), strings.Count(text, thinkClose)
	answers, answerEnds := strings.Count(text, answerOpen), strings.Count(text, answerClose)
	switch {
	case answers == 0 && answerEnds == 0:
		return CodeNoAnswer
	case thinks == 0 && thinkEnds == 0:
		return CodeNoThink
	case answers > 1 || answerEnds > 1:
		return CodeSeveralAnswers
	case thinks > 1 || thinkEnds > 1:
		return CodeSeveralThinks
	case thinks+thinkEnds+answers+answerEnds != 4:
		return CodeUnbalanced
	}
	// One of each: in order, they cut text into five pieces.
	before, rest, _ := strings.Cut(text, thinkOpen)
	think, rest, inOrder := strings.Cut(rest, thinkClose)
	between, rest, inOrder2 := strings.Cut(rest, answerOpen)
	answer, after, inOrder3 := strings.Cut(rest, answerClose)
	switch {
	case !inOrder || !inOrder2 || !inOrder3:
		return CodeUnbalanced
	case strings.TrimSpace(before+between+after) != "":
		return CodeTextOutside
	case strings.TrimSpace(think) == "" || strings.TrimSpace(answer) == "":
		return CodeEmptyBlock
	}
	return CodeFormatted
}
