package reward

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Choice is one lettered option of a question.
type Choice struct {
	Letter byte   // 'A' to 'Z'
	Text   string // as written, trimmed
}

// marker is a place in a question where an option may begin.
type marker struct {
	letter     byte
	style      rune // '.', ')', ':', '、', or '(' for "(A)"
	start, end int  // byte offsets of the whole marker
}

// Choices parses the lettered options of a question: "A." "A)" "A:" "A、" or
// "(A)", on one line or on many, from A upwards without a gap. It returns nil
// when there are not at least two.
func Choices(question string) []Choice {
	text := norm.NFKC.String(question)
	chain := longestChain(markers(text))
	if len(chain) < 2 {
		return nil
	}
	perLine := true
	for _, m := range chain[1:] {
		before := strings.TrimRight(text[:m.start], " \t")
		perLine = perLine && strings.HasSuffix(before, "\n")
	}
	choices := make([]Choice, len(chain))
	for i, m := range chain {
		end := len(text)
		if i+1 < len(chain) {
			end = chain[i+1].start
		}
		body := strings.TrimLeft(text[m.end:end], " \t\r\n")
		if i+1 == len(chain) && perLine {
			// What follows the last line of a list is no part of its last option.
			body, _, _ = strings.Cut(body, "\n")
		}
		choices[i] = Choice{Letter: m.letter, Text: strings.TrimRight(body, " \t\r\n,;、；，")}
	}
	return choices
}

// markers finds every place where an option may begin.
func markers(text string) []marker {
	var found []marker
	for i := 0; i < len(text); i++ {
		letter := text[i]
		if letter < 'A' || letter > 'Z' || i+1 >= len(text) {
			continue
		}
		next, size := utf8.DecodeRuneInString(text[i+1:])
		if !strings.ContainsRune(".):、", next) {
			continue
		}
		m := marker{letter: letter, style: next, start: i, end: i + 1 + size}
		if next == ')' && i > 0 && text[i-1] == '(' {
			m.style, m.start = '(', i-1
		}
		if beginsItem(text[:m.start]) {
			found = append(found, m)
		}
	}
	return found
}

// beginsItem says whether an option may begin right after before.
func beginsItem(before string) bool {
	r, _ := utf8.DecodeLastRuneInString(before)
	return before == "" || unicode.IsSpace(r) || isCJK(r) || strings.ContainsRune("?!:;,。、", r)
}

// longestChain picks the longest run A, B, C, ... of one style. Of equally long
// ones it takes the one that starts last, so that "vitamin A. ..." before the
// options is not mistaken for option A.
func longestChain(all []marker) []marker {
	var best []marker
	for start, first := range all {
		if first.letter != 'A' {
			continue
		}
		chain := []marker{first}
		for _, m := range all[start+1:] {
			if m.style == first.style && m.letter == 'A'+byte(len(chain)) {
				chain = append(chain, m)
			}
		}
		if len(chain) >= len(best) {
			best = chain
		}
	}
	return best
}
