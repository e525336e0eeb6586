package reward

import (
	"strings"
	"unicode/utf8"

	"github.com/uadt-train/uadt-train/rollout"
)

// letters is a set of option letters; bit 0 is A.
type letters uint32

func letterOf(c byte) letters { return 1 << (c - 'A') }

func (l letters) has(c byte) bool { return l&letterOf(c) != 0 }

func (l letters) count() int {
	n := 0
	for ; l != 0; l &= l - 1 {
		n++
	}
	return n
}

// String renders l as the prompts ask for it, such as "B,E,F".
func (l letters) String() string {
	var parts []string
	for c := byte('A'); c <= 'Z'; c++ {
		if l.has(c) {
			parts = append(parts, string(rune(c)))
		}
	}
	return strings.Join(parts, ",")
}

// choiceSet is what is known of the options of a question.
type choiceSet struct {
	choices []Choice // nil when unparsable
	folded  []string // Fold of each text
	allowed letters  // all letters when unparsable
}

func newChoiceSet(q rollout.Question) choiceSet {
	set := choiceSet{choices: Choices(q.Text)}
	if set.choices == nil && q.Kind == rollout.TrueFalse {
		set.choices = []Choice{{'A', "True"}, {'B', "False"}}
	}
	for _, c := range set.choices {
		set.allowed |= letterOf(c.Letter)
		set.folded = append(set.folded, foldTruth(c.Text))
	}
	if set.choices == nil {
		set.allowed = 1<<26 - 1
	}
	return set
}

// truths maps the words that say yes or no to true and false.
var truths = map[string]string{
	"yes": "true", "true": "true", "no": "false", "false": "false",
	"是": "true", "对": "true", "正确": "true", "否": "false", "错": "false", "错误": "false", "不是": "false", "不对": "false",
}

// foldTruth folds text; words for yes and no become true and false.
func foldTruth(text string) string {
	folded := Fold(text)
	if truth, ok := truths[folded]; ok {
		return truth
	}
	return folded
}

// byText returns the letters of the options whose whole text is text. A
// question mark, which folding loses, makes it a question.
func (s choiceSet) byText(text string) letters {
	folded, asked := foldTruth(text), strings.Contains(text, "?")
	var found letters
	for i, f := range s.folded {
		if f == folded && f != "" && (!asked || strings.Contains(s.choices[i].Text, "?")) {
			found |= letterOf(s.choices[i].Letter)
		}
	}
	return found
}

// matches says whether text is the whole text of option c.
func (s choiceSet) matches(c byte, text string) bool { return s.byText(text).has(c) }

// splitLetter takes a leading letter off normalised text: "B", "B. x", "B) x",
// "B: x", "B、x", "B,x", "(B) x". A letter before a blank is a word, not an
// option ("A retinal tear"), so it does not count.
func splitLetter(text string) (letter byte, rest string, ok bool) {
	if strings.HasPrefix(text, "(") && len(text) >= 3 && text[2] == ')' {
		text = text[1:]
	}
	if text == "" || !isLetter(text[0]) {
		return 0, "", false
	}
	letter = text[0] &^ 0x20
	if len(text) == 1 {
		return letter, "", true
	}
	mark, size := utf8.DecodeRuneInString(text[1:])
	if !strings.ContainsRune(".):、,", mark) {
		return 0, "", false
	}
	return letter, strings.TrimSpace(text[1+size:]), true
}

func isLetter(c byte) bool { return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' }

// single finds the one letter that normalised text names, or says why not.
func (s choiceSet) single(text string) (letters, Code) {
	if byText := s.byText(text); byText.count() == 1 && len(text) > 1 {
		return byText, ""
	}
	if several, ok := letterList(text); ok {
		switch {
		case several&^s.allowed != 0:
			return 0, CodeOutside
		case several.count() > 1:
			return several, CodeSeveralLetters
		}
		return several, ""
	}
	letter, rest, ok := splitLetter(text)
	switch {
	case !ok && negated(text):
		return 0, CodeNegated
	case ok && s.allowed.has(letter) && (rest == "" || s.matches(letter, rest)):
		return letterOf(letter), "" // before the doubts: an option's own words may hold an "or"
	case hedged(text):
		return 0, CodeHedged
	case !ok:
		return 0, CodeNoLetter
	case !s.allowed.has(letter):
		return 0, CodeOutside
	case negated(rest):
		return 0, CodeNegated
	case s.choices == nil:
		return 0, CodeUnverifiable
	}
	if _, rest2, ok := splitLetter(rest); ok && rest2 == "" || s.marked(text).count() > 1 {
		return 0, CodeSeveralLetters
	}
	return 0, CodeContradiction
}

// multiple finds the set of letters that normalised text names, or says why
// not.
func (s choiceSet) multiple(text string) (letters, Code) {
	found, ok := letterList(text)
	if !ok {
		found = s.marked(text)
	}
	if found == 0 {
		found = s.texts(text)
	}
	switch {
	case found&^s.allowed != 0:
		return 0, CodeOutside
	case found != 0:
		return found, ""
	case negated(text):
		return 0, CodeNegated
	case hedged(text):
		return 0, CodeHedged
	}
	if _, _, ok := splitLetter(text); ok {
		return 0, CodeContradiction
	}
	return 0, CodeNoLetter
}

// letterList reads text that consists of letters only: separated by commas,
// semicolons, 、, "and", 和 or blanks, or one run of distinct capitals.
// Duplicates in a list are merged. ok is false if anything else is in it.
func letterList(text string) (found letters, ok bool) {
	if run, ok := capitalRun(strings.Trim(text, ".()")); ok {
		return run, true
	}
	text = strings.NewReplacer(",", " ", ";", " ", "、", " ", "和", " ", "&", " ").Replace(text)
	for word := range strings.FieldsSeq(text) {
		if strings.EqualFold(word, "and") {
			continue
		}
		word = strings.Trim(word, ".()")
		if len(word) != 1 || !isLetter(word[0]) {
			return 0, false
		}
		found |= letterOf(word[0] &^ 0x20)
	}
	return found, found != 0
}

// capitalRun reads distinct capitals without anything between them.
func capitalRun(word string) (run letters, ok bool) {
	for i := 0; i < len(word); i++ {
		if word[i] < 'A' || word[i] > 'Z' || run.has(word[i]) {
			return 0, false
		}
		run |= letterOf(word[i])
	}
	return run, run != 0
}

// marked reads a list of letters each followed by its option's text, such as
// "A. drusen, C. exudate". It returns 0 unless every text is that option's.
func (s choiceSet) marked(text string) letters {
	all := markers(text)
	if len(all) == 0 || all[0].start != 0 {
		return 0
	}
	var found letters
	for i, m := range all {
		end := len(text)
		if i+1 < len(all) {
			end = all[i+1].start
		}
		body := strings.Trim(text[m.end:end], " ,;、")
		body = strings.TrimSuffix(body, " and")
		if !s.matches(m.letter, body) {
			return 0
		}
		found |= letterOf(m.letter)
	}
	return found
}

// texts reads a list of whole option texts separated by commas, semicolons or
// 、. It returns 0 unless every item is exactly one option.
func (s choiceSet) texts(text string) letters {
	var found letters
	if whole := s.byText(text); whole.count() == 1 {
		return whole
	}
	for item := range strings.FieldsFuncSeq(text, func(r rune) bool { return strings.ContainsRune(",;、", r) }) {
		one := s.byText(strings.TrimPrefix(strings.TrimSpace(item), "and "))
		if one.count() != 1 {
			return 0
		}
		found |= one
	}
	return found
}

// gold resolves the reference answer of q.
func (s choiceSet) gold(q rollout.Question) letters {
	text := Normalise(q.Gold)
	if q.Kind == rollout.MultipleChoice {
		found, _ := s.multiple(text)
		return found
	}
	if byText := s.byText(text); byText.count() == 1 && len(text) > 1 {
		return byText
	}
	if letter, _, ok := splitLetter(text); ok && s.allowed.has(letter) {
		return letterOf(letter)
	}
	return 0
}

// compareChoice compares an answer to a question with lettered options.
func compareChoice(q rollout.Question, text string) Answer {
	set := newChoiceSet(q)
	if q.Kind == rollout.MultipleChoice {
		found, code := set.multiple(text)
		return set.compare(q, found, code)
	}
	found, code := set.single(text)
	return set.compare(q, found, code)
}

// compare compares found letters with the gold ones; a code says that found is
// no answer, and why.
func (s choiceSet) compare(q rollout.Question, found letters, code Code) Answer {
	a := Answer{Extracted: found.String(), Reason: code, LetterOnly: s.choices == nil}
	gold := s.gold(q)
	if gold == 0 {
		a.Reason = CodeNoGold
	}
	if a.Reason != "" {
		return a
	}
	common := (found & gold).count()
	switch {
	case found == gold:
		a.Reason, a.Exact, a.F1 = CodeRight, true, 1
	case common > 0:
		a.Reason, a.F1 = CodePartial, 2*float64(common)/float64(found.count()+gold.count())
	default:
		a.Reason = CodeWrong
	}
	return a
}
