package reward

import (
	"regexp"
	"strings"

	"golang.org/x/text/unicode/norm"

	"github.com/uadt-train/uadt-train/rollout"
)

var (
	letterRun  = regexp.MustCompile(`\b[A-Z]{1,26}(?:(?:\s*[,;、&]\s*|\s+and\s+)[A-Z])*\b`)
	loneLetter = regexp.MustCompile(`\b[A-Z]\b`)
	truthWord  = regexp.MustCompile(`(?i)\b(?:true|false|yes|no)\b`)
	leadInside = regexp.MustCompile(`(?i)(?:answer|diagnosis)\s*(?:is|:)\s*|(?:答案|诊断)\s*(?:是|为|:)\s*`)
	wordAfter  = regexp.MustCompile(`^\s+[a-z]`)
)

// Lenient finds an answer wherever it can: in the last answer block, closed or
// not; else, for choices, the last letters that stand alone, and for open
// questions what follows the last "answer is" or the last line. Evaluation
// reports it beside [Strict], to tell wrong answers from wrong form; it is
// never a reward. Truncated traces are read as far as they go.
func Lenient(q rollout.Question, t rollout.Trace) Answer {
	if t.Finish == rollout.FinishAbort {
		return Answer{Reason: CodeAborted}
	}
	region := t.Text
	if at := strings.LastIndex(region, answerOpen); at >= 0 {
		region, _, _ = strings.Cut(region[at+len(answerOpen):], answerClose)
	} else if at := strings.LastIndex(region, thinkClose); at >= 0 && strings.TrimSpace(region[at+len(thinkClose):]) != "" {
		region = region[at+len(thinkClose):]
	}
	switch q.Kind {
	case rollout.SingleChoice, rollout.TrueFalse, rollout.MultipleChoice:
		if a := Compare(q, region); a.Extracted != "" && a.Reason != CodeSeveralLetters {
			return a
		}
		return lastLetters(q, region)
	}
	a := Compare(q, region)
	if a.Exact {
		return a
	}
	return Compare(q, lastLine(region))
}

// lastLetters compares the last letters of text that stand alone and are among
// the options. An article or pronoun ("A large drusen", "I see") is no letter.
func lastLetters(q rollout.Question, text string) Answer {
	set := newChoiceSet(q)
	text = norm.NFKC.String(strings.ToValidUTF8(text, ""))
	var last letters
	shape := loneLetter
	if q.Kind == rollout.MultipleChoice {
		shape = letterRun
	}
	for _, at := range shape.FindAllStringIndex(text, -1) {
		run := text[at[0]:at[1]]
		if (run == "A" || run == "I") && wordAfter.MatchString(text[at[1]:]) {
			continue
		}
		found, ok := letterList(run)
		if !ok || found&^set.allowed != 0 {
			continue
		}
		last = found
	}
	if last == 0 && q.Kind == rollout.TrueFalse {
		if words := truthWord.FindAllString(text, -1); words != nil {
			last = set.byText(words[len(words)-1])
		}
	}
	if last == 0 {
		return set.compare(q, 0, CodeNoLetter)
	}
	return set.compare(q, last, "")
}

// lastLine returns what follows the last lead-in of text, else its last line
// with anything on it.
func lastLine(text string) string {
	if all := leadInside.FindAllStringIndex(text, -1); all != nil {
		line, _, _ := strings.Cut(text[all[len(all)-1][1]:], "\n")
		if strings.TrimSpace(line) != "" {
			return line
		}
	}
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
