package dataset

import (
	"regexp"
	"sort"
	"strings"

	"github.com/uadt-train/uadt-train/rollout"
)

// Option is one lettered option of a question.
type Option struct {
	Letter byte // 'A' to 'Z'
	Text   string
}

// optionMark finds candidates for the start of an option: a single capital
// followed by one of . ) : 、 or in parentheses, at the start or after a space.
var optionMark = regexp.MustCompile(`(^|[\s(,;])([A-Z])([.):、：．])`)

// ParseOptions finds the lettered options in a question, on one line or many:
// "A." "A)" "A:" "(A)". They must start at A and follow each other; nil when
// there are fewer than two.
func ParseOptions(question string) []Option {
	marks := optionMark.FindAllStringSubmatchIndex(question, -1)
	var options []Option
	start := -1 // where the text of the last option begins
	for _, m := range marks {
		letter := question[m[4]]
		if int(letter) != int('A')+len(options) {
			if letter != 'A' {
				continue
			}
			options, start = nil, -1 // a second A starts the list anew
		}
		if start >= 0 {
			options[len(options)-1].Text = optionText(question[start:m[4]])
		}
		options = append(options, Option{Letter: letter})
		start = m[7]
	}
	if len(options) < 2 {
		return nil
	}
	options[len(options)-1].Text = optionText(question[start:])
	return options
}

func optionText(s string) string {
	return strings.Trim(strings.TrimSpace(s), "(,;. \n\t")
}

// letterSet reads "B", "A,C", "A, C", "AC", "A and C" as sorted distinct
// letters; ok is false for anything else.
var letterSetForm = regexp.MustCompile(`^[A-Z](?:(?:\s*[,;、]\s*|\s+and\s+|\s+)?[A-Z])*[.。]?$`)

func letterSet(answer string) (letters []byte, ok bool) {
	answer = strings.TrimSpace(answer)
	if !letterSetForm.MatchString(answer) {
		return nil, false
	}
	seen := map[byte]bool{}
	for i := range len(answer) {
		if c := answer[i]; c >= 'A' && c <= 'Z' {
			if seen[c] {
				return nil, false
			}
			seen[c] = true
			letters = append(letters, c)
		}
	}
	sort.Slice(letters, func(i, j int) bool { return letters[i] < letters[j] })
	return letters, true
}

// typed is a question with its type and a normalised reference answer.
type typed struct {
	kind     rollout.Kind
	question string
	gold     string
}

// classify decides the type of a question. declared, when not empty, is
// believed; hint is the type that the file is known to hold, or empty.
//
//   - a true/false or yes/no answer, or exactly those two options: true/false,
//     asked with options A. True B. False and answered by letter;
//   - several letters, or a letter in a file of multiple-choice questions:
//     multiple choice, letters sorted and joined by commas;
//   - one letter with options: single choice; an answer that is the whole text
//     of one option becomes its letter;
//   - anything else: open.
func classify(question, answer, declared string, hint rollout.Kind) typed {
	question, answer = strings.TrimSpace(question), strings.TrimSpace(answer)
	kind := rollout.Kind(declared)
	if kind == "" {
		kind = hint
	}
	options := ParseOptions(question)
	if kind == rollout.Open {
		return typed{rollout.Open, question, answer}
	}
	if t, ok := truth(question, answer, options); ok && (kind == "" || kind == rollout.TrueFalse) {
		return t
	}
	letters, isLetters := letterSet(answer)
	if !isLetters || !within(letters, options) {
		if l, ok := byText(answer, options); ok {
			letters, isLetters = []byte{l}, true
		} else {
			isLetters = false
		}
	}
	if !isLetters {
		if kind == "" {
			kind = rollout.Open
		}
		return typed{kind, question, answer}
	}
	if kind == "" {
		kind = rollout.SingleChoice
		if len(letters) > 1 {
			kind = rollout.MultipleChoice
		}
	}
	parts := make([]string, len(letters))
	for i, l := range letters {
		parts[i] = string(l)
	}
	return typed{kind, question, strings.Join(parts, ",")}
}

// within reports whether every letter is that of an option; without options
// one letter alone is believed.
func within(letters []byte, options []Option) bool {
	if options == nil {
		return len(letters) == 1
	}
	for _, l := range letters {
		if int(l-'A') >= len(options) {
			return false
		}
	}
	return true
}

// byText finds the one option whose text is the answer, case aside.
func byText(answer string, options []Option) (byte, bool) {
	var found byte
	for _, o := range options {
		if strings.EqualFold(strings.Trim(answer, ". "), strings.Trim(o.Text, ". ")) {
			if found != 0 {
				return 0, false
			}
			found = o.Letter
		}
	}
	return found, found != 0
}

// truth recognises true/false questions.
func truth(question, answer string, options []Option) (typed, bool) {
	if len(options) == 2 && truthWord(options[0].Text) != 0 && truthWord(options[1].Text) != 0 &&
		truthWord(options[0].Text) != truthWord(options[1].Text) {
		if letters, ok := letterSet(answer); ok && len(letters) == 1 && within(letters, options) {
			return typed{rollout.TrueFalse, question, string(letters[0])}, true
		}
		if w := truthWord(answer); w != 0 {
			gold := "A"
			if w != truthWord(options[0].Text) {
				gold = "B"
			}
			return typed{rollout.TrueFalse, question, gold}, true
		}
		return typed{}, false
	}
	w := truthWord(answer)
	if options != nil || w == 0 {
		return typed{}, false
	}
	gold := "A"
	if w < 0 {
		gold = "B"
	}
	return typed{rollout.TrueFalse, question + " A. True B. False", gold}, true
}

// truthWord is 1 for true or yes, -1 for false or no, else 0.
func truthWord(s string) int {
	switch strings.ToLower(strings.Trim(s, " .")) {
	case "true", "yes":
		return 1
	case "false", "no":
		return -1
	}
	return 0
}
